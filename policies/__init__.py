"""The built-in policies, one file each. They know tensors, and of kvserve only the contract."""
