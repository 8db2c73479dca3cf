"""The one error that a user's input can cause."""


class PolicyError(ValueError):
    """A request that cannot be served as asked.

    `param` names the field of the request (`kv_policy` or `kv_policy.<field>`), `reason` is a short
    word for metrics (`unknown_policy`, `bad_parameter`, `unsupported`, `too_long`).
    """

    def __init__(self, message: str, *, param: str = "kv_policy", reason: str = "bad_parameter") -> None:
        super().__init__(message)
        self.param = param
        self.reason = reason
