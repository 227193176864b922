"""Draw the two sprites of `mario_iggy`, at eight times their size, and scale them down: a gardener and a robot.

    python scripts/draw_sprites.py datasets

The suite reads the committed pictures, so that a new version of the drawing library changes nobody's data.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw

SIDE, ZOOM = 32, 8


def canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Make a transparent picture and its pen; coordinates are eighths of a pixel."""
    image = Image.new("RGBA", (SIDE * ZOOM, SIDE * ZOOM))
    return image, ImageDraw.Draw(image)


def gardener() -> Image.Image:
    """Draw a gnome: tall green hat, white beard, blue coat, boots."""
    image, pen = canvas()
    pen.rounded_rectangle((80, 150, 176, 216), 20, fill=(52, 92, 190))  # coat
    pen.ellipse((56, 152, 92, 196), fill=(52, 92, 190))  # arms
    pen.ellipse((164, 152, 200, 196), fill=(52, 92, 190))
    pen.ellipse((58, 180, 82, 204), fill=(244, 194, 150))  # hands
    pen.ellipse((174, 180, 198, 204), fill=(244, 194, 150))
    pen.rectangle((80, 196, 176, 204), fill=(240, 200, 60))  # belt
    pen.rounded_rectangle((78, 210, 122, 232), 8, fill=(96, 60, 34))  # boots
    pen.rounded_rectangle((134, 210, 178, 232), 8, fill=(96, 60, 34))
    pen.ellipse((76, 76, 180, 160), fill=(244, 194, 150))  # face
    pen.polygon([(78, 118), (178, 118), (128, 196)], fill=(245, 245, 240))  # beard
    pen.ellipse((78, 104, 178, 156), fill=(245, 245, 240))
    pen.ellipse((88, 84, 168, 128), fill=(244, 194, 150))
    pen.ellipse((116, 108, 140, 130), fill=(226, 140, 110))  # nose
    pen.ellipse((98, 92, 112, 110), fill=(30, 30, 40))  # eyes
    pen.ellipse((144, 92, 158, 110), fill=(30, 30, 40))
    pen.polygon([(62, 92), (194, 92), (140, 14)], fill=(40, 160, 70))  # hat
    pen.rounded_rectangle((58, 82, 198, 98), 8, fill=(24, 120, 50))
    return image


def robot() -> Image.Image:
    """Draw a robot: red lamp on an antenna, wide yellow eyes, square orange body, two wheels."""
    image, pen = canvas()
    pen.line((128, 26, 128, 60), fill=(170, 170, 180), width=8)  # antenna
    pen.ellipse((114, 12, 142, 40), fill=(230, 40, 40))
    pen.rounded_rectangle((64, 54, 192, 126), 14, fill=(170, 178, 190))  # head
    pen.rectangle((52, 78, 64, 104), fill=(120, 126, 138))  # ears
    pen.rectangle((192, 78, 204, 104), fill=(120, 126, 138))
    pen.ellipse((78, 68, 114, 104), fill=(250, 220, 60))  # eyes
    pen.ellipse((142, 68, 178, 104), fill=(250, 220, 60))
    pen.ellipse((90, 80, 104, 94), fill=(30, 30, 40))
    pen.ellipse((152, 80, 166, 94), fill=(30, 30, 40))
    pen.rectangle((96, 110, 160, 118), fill=(70, 74, 84))  # mouth
    pen.rectangle((108, 126, 148, 136), fill=(120, 126, 138))  # neck
    pen.rounded_rectangle((72, 134, 184, 206), 10, fill=(232, 128, 36))  # body
    pen.rectangle((92, 150, 164, 172), fill=(60, 200, 220))
    pen.line((72, 150, 44, 184), fill=(120, 126, 138), width=12)  # arms
    pen.line((184, 150, 212, 184), fill=(120, 126, 138), width=12)
    pen.ellipse((74, 200, 118, 244), fill=(50, 50, 58))  # wheels
    pen.ellipse((138, 200, 182, 244), fill=(50, 50, 58))
    pen.ellipse((88, 214, 104, 230), fill=(170, 170, 180))
    pen.ellipse((152, 214, 168, 230), fill=(170, 170, 180))
    return image


def main(folder: Path) -> None:
    """Write both pictures."""
    for name, image in (("gardener", gardener()), ("robot", robot())):
        path = folder / f"{name}.png"
        image.resize((SIDE, SIDE), Image.Resampling.BOX).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "datasets"))
