"""Long answers in a tight pool: short prompts that outgrow it while they generate."""

from loadtests.stage import Stage

PART = "decode"


def measure(stage: Stage) -> None:
    for policy in stage.sizes.decode_policies:
        stage.notes.add(PART, f"{policy} @ {100 * stage.share:g} %", **stage.measured(policy, stage.sizes.decode))
