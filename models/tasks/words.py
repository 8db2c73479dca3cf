"""The key words that the tokenizer holds as one token each, and that the tasks use as look-up keys."""

ADJECTIVES = tuple(
    """
amber ancient azure bitter blank blazing bold brass brave breezy bright brisk bronze calm carved cheerful chilly
clever copper coral cosmic cozy crimson crisp curly daring dusty eager early eastern ebony elegant emerald fading
faint fancy fearless fluffy foggy frosty gentle gilded glossy golden graceful hasty hazel hidden hollow honest
humble icy indigo ivory jade jolly keen lavender lively lonely lucky lunar magenta marble mellow merry mighty misty
modest mossy muddy navy nimble noble olive opal orange patient pearl plaid polished proud purple quaint quick rapid
restless rosy royal rusty sandy scarlet serene shady sleepy
""".split()
)

NOUNS = tuple(
    """
acorn anchor antler apron arrow badger bakery balloon bamboo banjo barrel basket beacon beetle bicycle blanket
blossom bottle bridge bucket butter cabin cactus camel candle canoe canyon castle cedar cello chapel cherry cobra
comet compass cottage cradle cricket crystal dagger dolphin donkey dragon drum eagle ember falcon feather fiddle
finch forest fountain fox galaxy garden gazelle ginger glacier goblet goose guitar hammer harbor harp hawk hedge
helmet heron hornet island jaguar jungle kettle kitten lagoon lantern lemon leopard lizard lobster locket lynx
magnet maple marsh meadow melon meteor mirror moose mountain nutmeg oasis orchard otter owl oyster paddle panther
parrot pebble pelican pepper piano pigeon pillow planet plum pony prairie puffin pumpkin rabbit raven reef ribbon
river robin rocket saddle salmon sparrow spoon
""".split()
)

KEY_WORDS = ADJECTIVES + NOUNS
