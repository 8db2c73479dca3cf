"""What the models are trained and tested on: words, prose, scenes, and the tasks that are made of them."""
