"""Picture files of every format and mode become the pixels that they show."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from denoiser.data import load_fashion_mnist
from denoiser.data.pictures import as_pixels, fitted, is_grey, read_picture, with_channels
from tests.conftest import DATA_ROOT


@pytest.fixture(scope="module")
def colours():
    """Return a colour picture, 24 wide and 20 high, of three garments."""
    garments = load_fashion_mnist(DATA_ROOT, "test", 28).images[:3, 0, 4:24, 2:26]
    return Image.fromarray(garments.permute(1, 2, 0).contiguous().numpy())


def pixels(path, background="white"):
    """Return what is read, `(height, width, channels)`."""
    return read_picture(path, background).permute(1, 2, 0).numpy()


def png(path, size, colour_type, bits, rows, *chunks):
    """Write a PNG of modes that Pillow cannot write."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", *size, bits, colour_type, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    inner = b"".join(chunk(*each) for each in (*chunks, (b"IDAT", content), (b"IEND", b"")))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + inner)
    return path


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tif", ".TIFF", ".webp", ".gif", ".jpg", ".JPeG"])
def test_every_format_is_read(tmp_path, colours, suffix):
    path, lossy = tmp_path / f"picture{suffix}", suffix.lower() in (".jpg", ".jpeg")
    picture = colours.quantize(32) if suffix == ".gif" else colours
    picture.save(
        path, quality=100, **({"lossless": True} if suffix == ".webp" else {"subsampling": 0} if lossy else {})
    )
    difference = np.abs(pixels(path).astype(int) - np.asarray(picture.convert("RGB")))
    assert difference.max() <= (4 if lossy else 0)


def test_greys_have_one_channel(tmp_path, colours):
    for name in ("grey.png", "grey.bmp", "grey.tiff"):
        colours.convert("L").save(tmp_path / name)
        assert np.array_equal(pixels(tmp_path / name)[..., 0], np.asarray(colours.convert("L")))
        assert read_picture(tmp_path / name).shape == (1, 20, 24)


def test_one_bit_is_black_and_white(tmp_path, colours):
    picture = colours.convert("1")
    picture.save(tmp_path / "1.png")
    assert np.array_equal(pixels(tmp_path / "1.png")[..., 0], np.asarray(picture) * 255)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_greys_are_rounded_exactly(tmp_path, suffix):
    levels = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(levels).save(tmp_path / f"16{suffix}")
    assert np.array_equal(pixels(tmp_path / f"16{suffix}")[..., 0], np.rint(levels / 257))


def test_a_transparent_16_bit_grey_shows_the_background(tmp_path):
    rows = [struct.pack(">HH", 1000, 2570), struct.pack(">HH", 65535, 0)]
    path = png(tmp_path / "x.png", (2, 2), 0, 16, rows, (b"tRNS", struct.pack(">H", 1000)))
    assert pixels(path)[..., 0].tolist() == [[255, 10], [255, 0]]
    assert pixels(path, "black")[..., 0].tolist() == [[0, 10], [255, 0]]


def test_16_bit_colours_and_alphas_keep_their_high_bytes(tmp_path):
    rows = [struct.pack(">6H", 0xFFFF, 0x8012, 0, 0x1234, 0x5678, 0x9ABC)]
    path = png(tmp_path / "rgb.png", (2, 1), 2, 16, rows)
    assert pixels(path).tolist() == [[[255, 128, 0], [0x12, 0x56, 0x9A]]]
    path = png(tmp_path / "la.png", (2, 1), 4, 16, [struct.pack(">4H", 0x4000, 0xFFFF, 0x4000, 0)])
    assert pixels(path).tolist() == [[[64] * 3, [255] * 3]]  # as Pillow opens it
    path = png(tmp_path / "rgba.png", (1, 1), 6, 16, [struct.pack(">4H", 0x4000, 0x5000, 0x6000, 0xFFFF)])
    assert pixels(path).tolist() == [[[64, 80, 96]]]


def test_a_palette_becomes_its_colours(tmp_path, colours):
    picture = colours.quantize(16)
    picture.save(tmp_path / "p.png")
    assert np.array_equal(pixels(tmp_path / "p.png"), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0)])
def test_transparent_pixels_show_the_background(tmp_path, colours, background, level):
    alpha = Image.new("L", colours.size, 0)
    alpha.paste(255, (0, 0, 12, 20))
    alpha.paste(128, (18, 0, 24, 20))
    half = np.asarray(colours).copy()
    half[:, 12:18] = level
    half[:, 18:] = np.rint(half[:, 18:] * (128 / 255) + level * (127 / 255))
    picture = colours.copy()
    picture.putalpha(alpha)
    for name in ("rgba.png", "rgba.tiff", "rgba.webp"):
        picture.save(tmp_path / name, lossless=True, exact=True)
        assert np.abs(pixels(tmp_path / name, background).astype(int) - half).max() <= 1
    grey = colours.convert("L")
    grey.putalpha(alpha)
    grey.save(tmp_path / "la.png")
    seen = pixels(tmp_path / "la.png", background)
    assert seen.shape == (20, 24, 1)
    assert (seen[:, 12:18] == level).all()
    assert np.array_equal(seen[:, :12, 0], np.asarray(colours.convert("L"))[:, :12])


def test_one_transparent_entry_or_level_shows_the_background(tmp_path, colours):
    palette = colours.quantize(16)
    palette.save(tmp_path / "p.png", transparency=3)
    palette.save(tmp_path / "p.gif", transparency=3)
    hidden = np.asarray(palette) == 3
    assert hidden.any()
    expected = np.where(hidden[..., None], 0, np.asarray(palette.convert("RGB")))
    assert np.array_equal(pixels(tmp_path / "p.png", "black"), expected)
    assert np.array_equal(pixels(tmp_path / "p.gif", "black"), expected)
    grey = colours.convert("L")
    level = int(np.asarray(grey)[3, 3])
    grey.save(tmp_path / "l.png", transparency=level)
    assert np.array_equal(
        pixels(tmp_path / "l.png", "white")[..., 0], np.where(np.asarray(grey) == level, 255, np.asarray(grey))
    )
    colour = tuple(np.asarray(colours)[3, 3].tolist())
    colours.save(tmp_path / "rgb.png", transparency=colour)
    same = (np.asarray(colours) == colour).all(axis=-1, keepdims=True)
    assert np.array_equal(pixels(tmp_path / "rgb.png", "white"), np.where(same, 255, np.asarray(colours)))


def test_a_palette_of_many_alphas_is_blended(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([200, 100, 0, 200, 100, 0])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "p.png", transparency=bytes([255, 51]))
    assert pixels(tmp_path / "p.png", "black").tolist() == [[[200, 100, 0], [40, 20, 0]]]


def test_cmyk_becomes_the_colours_that_it_prints(tmp_path, colours):
    cmyk = colours.convert("CMYK")
    cmyk.save(tmp_path / "cmyk.tiff")
    assert np.abs(pixels(tmp_path / "cmyk.tiff").astype(int) - np.asarray(colours)).max() <= 1
    cmyk.save(tmp_path / "cmyk.jpg", quality=100)  # which Pillow writes as Adobe does, inverted
    assert b"Adobe" in (tmp_path / "cmyk.jpg").read_bytes()
    assert np.abs(pixels(tmp_path / "cmyk.jpg").astype(int) - np.asarray(colours)).mean() < 4
    content = (tmp_path / "cmyk.jpg").read_bytes()
    start = content.index(b"\xff\xee")
    (tmp_path / "plain.jpg").write_bytes(content[:start] + content[start + 16 :])  # without the Adobe segment
    assert np.array_equal(pixels(tmp_path / "plain.jpg"), pixels(tmp_path / "cmyk.jpg"))  # taken as Adobe's too


def test_ycbcr_becomes_rgb(tmp_path, colours):
    colours.convert("YCbCr").save(tmp_path / "y.tiff", compression="jpeg", quality=100)
    assert np.abs(pixels(tmp_path / "y.tiff").astype(int) - np.asarray(colours)).mean() <= 3


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.tiff", "x.png"])
def test_the_first_frame_is_read(tmp_path, colours, name):
    first, second = colours.quantize(8).convert("RGB"), ImageOps.invert(colours)
    first.save(tmp_path / name, save_all=True, append_images=[second, second], lossless=True)
    assert np.array_equal(pixels(tmp_path / name), np.asarray(first))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bits_are_refused(tmp_path, kind):
    Image.fromarray(np.arange(64, dtype=kind).reshape(8, 8)).save(tmp_path / "x.tiff")
    with pytest.raises(ValueError, match="its values have 32 bits; save it with 8 or 16"):
        read_picture(tmp_path / "x.tiff")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotations_in_exif_are_applied(tmp_path, suffix, orientation):
    """As a viewer shows them: the first row and column of the stored picture lie at these sides of the shown one."""
    sides = [
        "top left",
        "top right",
        "bottom right",
        "bottom left",
        "left top",
        "right top",
        "right bottom",
        "left bottom",
    ]
    first_row, first_column = sides[orientation - 1].split()
    stored = np.full((32, 48, 3), 128, dtype=np.uint8)
    stored[:16], stored[:, :16] = (255, 255, 255), (0, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / f"x{suffix}", exif=exif, quality=95)
    seen = pixels(tmp_path / f"x{suffix}")
    assert seen.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    halves = {"top": seen[:8], "bottom": seen[-8:], "left": seen[:, :8], "right": seen[:, -8:]}
    assert (halves[first_column] < 20).mean() > 0.6
    assert (halves[first_row] > 235).mean() > 0.4


def test_grey_is_pillows_to_the_bit():
    levels = torch.arange(256, dtype=torch.uint8)
    colours = torch.stack([levels.repeat_interleave(256), levels.repeat(256), levels.flip(0).repeat(256)])
    colours = colours.view(3, 256, 256)
    expected = np.asarray(Image.fromarray(colours.permute(1, 2, 0).contiguous().numpy()).convert("L"))
    assert np.array_equal(with_channels(colours, 1)[0].numpy(), expected)


def test_grey_becomes_colour_and_other_channels_must_agree():
    grey = torch.arange(16, dtype=torch.uint8).view(1, 4, 4)
    assert torch.equal(with_channels(grey, 3), grey.expand(3, 4, 4))
    with pytest.raises(ValueError, match="has 4 channels, not 3; only grey and colour are converted"):
        with_channels(grey.expand(4, 4, 4), 3)


def test_is_grey():
    grey = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).expand(2, 3, 4, 4).clone()
    assert is_grey(grey)
    for channel in range(3):
        tinted = grey.clone()
        tinted[1, channel, 3, 3] += 1
        assert not is_grey(tinted)


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (33, 20)])
@pytest.mark.parametrize("size", [(16, 16), (8, 16), (24, 12)])
def test_crop_pad_and_stretch(shape, size):
    """Black in the middle square, grey around it, at the shape's centre."""
    image = torch.full((3, *shape), 100, dtype=torch.uint8)
    (height, width), (tall, wide) = shape, size
    stretched = fitted(image, size, "stretch")
    assert stretched.shape == (3, *size)
    assert (stretched == 100).all()
    assert (fitted(image, size, "crop") == 100).all()
    padded = fitted(image, size, "pad", "black")
    inside = padded[0] == 100
    rows, columns = inside.any(dim=1).nonzero(), inside.any(dim=0).nonzero()
    assert (padded[0] == 0).sum() + inside.sum() == tall * wide
    inner = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
    assert inner[0] == tall or inner[1] == wide
    assert abs(inner[1] / inner[0] - width / height) <= 1.0 / min(inner) * max(1, width / height)
    assert abs(int(rows.min()) - (tall - 1 - int(rows.max()))) <= 1


def test_a_crop_keeps_the_middle():
    image = torch.zeros(1, 16, 48, dtype=torch.uint8)
    image[..., 16:32] = 255
    assert (fitted(image, (16, 16)) == 255).all()
    assert (fitted(image.mT, (16, 16)) == 255).all()
    assert (fitted(image.mT, (8, 8)) == 255).all()


def test_the_resize_is_the_same_for_one_image_and_many_and_in_any_memory_order():
    images = load_fashion_mnist(DATA_ROOT, "test", 28).images[:9].view(3, 3, 28, 28)
    small = torch.nn.functional.interpolate(images, (16, 12), mode="bilinear", antialias=True)
    for image, expected in zip(images, small, strict=True):
        assert torch.equal(fitted(image, (16, 12), "stretch"), expected)
        as_pillow_has_it = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        assert torch.equal(fitted(as_pillow_has_it, (16, 12), "stretch"), expected)


def test_extreme_shapes_are_fitted():
    for shape in ((1, 3000), (3000, 1), (1, 1)):
        for fit in ("crop", "pad", "stretch"):
            assert fitted(torch.zeros(3, *shape, dtype=torch.uint8), (16, 16), fit).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.png", b""),
        ("text.png", b"not a picture at all\n"),
        ("magic.png", b"\x89PNG\r\n\x1a\n"),
        ("magic.jpg", b"\xff\xd8\xff\xe0"),
        ("magic.gif", b"GIF89a"),
        ("magic.tiff", b"II*\0\x08\0\0\0"),
        ("drawing.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    ],
)
def test_a_file_that_is_no_picture_is_refused_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a picture") as caught:
        read_picture(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".tiff", ".webp"])
def test_a_truncated_picture_is_refused(tmp_path, colours, suffix):
    path = tmp_path / f"x{suffix}"
    colours.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        read_picture(path)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 16, 12), (5, 1, 16, 12)),
        ((5, 16, 12, 3), (5, 3, 16, 12)),
        ((5, 3, 16, 12), (5, 3, 16, 12)),
        ((5, 4, 16, 16), (5, 4, 16, 16)),
        ((5, 16, 16, 13), (5, 13, 16, 16)),
        ((5, 13, 16, 16), (5, 13, 16, 16)),
    ],
)
def test_arrays_have_their_channels_second(shape, expected):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    seen = as_pixels(array, "x")
    assert seen.shape == expected
    for channel in range(expected[1]):
        own = array if array.ndim == 3 else array[..., channel] if shape[-1] == expected[1] else array[:, channel]
        assert np.array_equal(seen[:, channel], own)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floating_images_are_rounded(kind):
    levels = np.arange(256).reshape(1, 16, 16)
    assert np.array_equal(as_pixels((levels / 255).astype(kind), "x")[:, 0], levels)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4)), r"x has shape \(4, 4\); give \(count, height, width\)"),
        (np.zeros((0, 4, 4)), r"x has shape \(0, 4, 4\)"),
        (np.zeros((1, 4, 4), dtype=np.int64), "x has int64 images"),
        (np.zeros((1, 4, 4), dtype=bool), "x has bool images"),
        (np.full((1, 4, 4), 1.5), "x has values from 1.5 to 1.5; floating images go from 0 to 1"),
        (np.full((1, 4, 4), -0.1), "x has values from -0.1"),
        (np.full((1, 4, 4), np.nan), "x has values from nan to nan"),
    ],
)
def test_arrays_of_another_kind_are_refused(array, message):
    with pytest.raises(ValueError, match=message):
        as_pixels(array, "x")
