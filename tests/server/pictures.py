"""The README's pictures of the live page: `python -m tests.server.pictures` serves a real model, loads it and looks."""

import random
import tempfile
import threading
import time
from pathlib import Path

from models.fetchable import DEFAULT
from tests.server.browsing import chromium, look, picture
from tests.server.running import KEY, ServerUnderTest, serving, wait_for

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SECONDS = 150  # of traffic before the picture
CLIENTS = 7
COMMAND = f"kvserve serve {DEFAULT} --kv-resident-tokens 4096 --num-gpu-blocks-override 144".split()
TRAFFIC = ["full", "snapkv:0.25", "streaming:512", "h2o:0.25", "keydiff:0.3", "tova:0.4"]


def busy(server: ServerUnderTest, seed: int, end: float) -> None:
    """One client: a request after the other, with pauses."""
    rng = random.Random(seed)
    while time.monotonic() < end:
        prompt = rng.choices(range(10, 2000), k=rng.randint(400, 2400))
        server.complete(prompt, rng.choice(TRAFFIC), model=DEFAULT, max_tokens=rng.randint(60, 240), timeout=600)
        time.sleep(rng.random())


def small(png: Path) -> None:
    """A palette of 128 colours is enough for this page and a third of the bytes."""
    from PIL import Image

    with Image.open(png) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(png, optimize=True)


def take(folder: Path = IMAGES) -> None:
    """kv-page-light.png and kv-page-dark.png."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp())
    with serving(scratch / "log", COMMAND) as server, chromium(scratch / "profile") as browser:
        look(browser, "light", 1280, 1400, 1.5)
        browser.get(server.url + "/kv")
        browser.execute_script("sessionStorage.setItem('kvserve-key', arguments[0])", KEY)
        browser.refresh()
        end = time.monotonic() + SECONDS + 120
        clients = [threading.Thread(target=busy, args=(server, seed, end)) for seed in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(SECONDS)
        browser.find_element("id", "run").click()
        wait_for(lambda: browser.find_element("id", "progress").text == "Done", 300)
        for scheme in ("light", "dark"):
            look(browser, scheme, 1280, 1400, 1.5)
            wait_for(lambda: len(browser.find_elements("css selector", "#running tr")) >= CLIENTS - 1, 120)
            time.sleep(0.6)  # bars take half a second to their new lengths
            picture(browser, folder / f"kv-page-{scheme}.png")
            small(folder / f"kv-page-{scheme}.png")
        for client in clients:
            client.join()


if __name__ == "__main__":
    take()
