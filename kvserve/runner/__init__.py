"""Between vLLM's model runners and what runs plans: one adapter for each runner, and what they share."""
