"""Quality of policies over an OpenAI endpoint: tasks, protocols, scoring, controls. `kvserve eval` runs it."""
