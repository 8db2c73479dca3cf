// Prompts and policies to begin with: for the mini model in the few wordings that it was trained on, for others a text to read.

import { text } from "./api.js";

const TOWN = `The harbour town wakes before the sun does. Nets are lifted from their hooks and checked for holes.
The first boats leave when the tide turns, whatever the clock says. A bell marks the hour at which the bridge opens.
Children count the gulls on the roof of the customs house. The baker carries two trays across the square and returns for a third.
Old maps show a second pier that nobody alive has seen. The keeper of the light writes down the wind four times a day.
When fog comes in, the horn is sounded twice a minute. Rope is sold by weight and by length, and the two never agree.
The library keeps its tide tables next to the cook books. A painted sign asks visitors not to feed the cats.
In the market hall the same three stalls have stood for sixty years. Apples come by cart from the valley, and onions by train.
The train is late on most days and early on none. The doctor lives above the school and hears every lesson.
On the hill there is a garden with a wall around it. The wall is older than the garden and older than the road.
Stones from the wall were used to mend the church. Rain fills the cistern in spring and the cistern lasts until autumn.
The clock in the tower was made by a man who repaired pumps. It strikes softly because he disliked noise.
Every boat has a name and a number, and the number is painted twice. Sails are mended in winter, in the long room behind the chapel.
The post office opens a letter box on the quay for the crews. Letters that wait a month are put on a shelf in the back.
A ferry crosses to the island when there are at least four passengers. The island has one street, one well and one inn.
The innkeeper reads the newspaper aloud at noon. Salt is dried in shallow pans along the southern shore.
The pans shine in the evening and can be seen from the train. A retired captain teaches knots to anyone who asks.
He knows sixty knots and uses five of them. The boat builder begins a new hull every second year.
Wood for the hull is chosen while the tree still stands. Each plank is bent over steam and cooled in sand.
The last light is put out when the keeper has closed his book.`.split(/(?<=\.)\s+/);

/** `facts` at even distances between the sentences. */
function woven(facts, question) {
  const every = TOWN.length / facts.length;
  const text = TOWN.flatMap((sentence, i) => {
    const fact = facts[Math.floor(i / every)];
    return Math.floor((i + 1) / every) > Math.floor(i / every) ? [sentence, fact] : [sentence];
  });
  return `${text.join(" ")} ${question}`;
}

const CODES = ["amber otter 4821", "jade lynx 9310", "quick lantern 2754", "golden canoe 6187", "gentle kitten 3037",
  "humble drum 7462", "scarlet puffin 1598", "misty anchor 8043"].map((code) => {
  const [, key, number] = /^(.*) (\d+)$/.exec(code);
  return `The code for ${key} is ${number}.`;
});

const ALIASES = ["x7 = 482.", "k2 = 915.", "y3 = x7.", "b6 = k2.", "z1 = y3.", "m4 = b6.", "w8 = z1.", "p5 = m4."];

const LINES = ["marble reef cactus fox", "icy piano brave raven ribbon", "clever magnet olive heron", "sandy rocket calm glacier",
  "proud meadow royal compass", "frosty candle keen lizard apron", "mellow badger coral bridge",
  "eager falcon plum locket", "rusty bicycle noble oasis", "sleepy panther crisp goblet"].map((words, i) => `Line ${17 + 8 * i}: ${words}.`);

const PROGRAM = ["t2 = 31", "s9 = t2", "a4 = 58", "q1 = s9", "e7 = a4", "h3 = 76", "n8 = q1", "c5 = h3", "r6 = e7", "d0 = n8", "u2 = c5",
  "j9 = r6"].map((step, i) => `Step ${12 + i}: ${step}.`);

const sample = (prompt, tokens = 128) => ({ prompt: async () => prompt, tokens });

/** A question about a text of 1,100 tokens. */
const asked = (question, tokens = 64) => ({ prompt: async () => `${await text("kv/harbour.txt")}\n${question}`, tokens });

const CODES_ASKED = sample(woven(CODES, "What is the code for gentle kitten?"));
const OPEN = sample(woven(CODES, `

Describe the town in three sentences. Then list every code in the text with its name, in alphabetical order.`), 384);

const MINI = {
  "Eight codes in a text, one question": CODES_ASKED,
  "A chain of names": sample(woven(ALIASES, "Trace w8.")),
  "Numbered lines": sample(`${LINES.join("\n")}\n${TOWN.slice(0, 24).join(" ")} Repeat line 33.`),
  "A program, with a long answer": sample(`${PROGRAM.join("\n")} Run the program.`, 384),
  "Open question, for larger models": OPEN,
};

const REAL = {
  "A harbour town: the ferry": asked("What is the name of the ferry to the island?"),
  "A harbour town: the museum": asked("What is the name of the stuffed pelican?"),
  "A harbour town: a summary": asked("Summarize the text in three sentences.", 128),
  "Eight codes in a text, one question": CODES_ASKED,
  "Open question, for larger models": OPEN,
};

/** {samples: {name: {prompt: async () => string, tokens}}, policies: ["name:budget"], the first ones to be shown}. */
export function startFor(model) {
  return model === "kvserve-mini"
    ? { samples: MINI, policies: ["full", "snapkv:0.25", "streaming:0.25", "scissorhands:0.25", "knorm:0.25", "random:0.25"] }
    : { samples: REAL, policies: ["full", "rkv:0.25", "snapkv:0.25", "streaming:0.25", "tova:0.25", "random:0.25"] };
}
