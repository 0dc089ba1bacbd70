from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ntkpipe.config import DataConfig
from ntkpipe.data import cifar, image_folder, mnist
from ntkpipe.data.dataset import load_dataset, load_raw
from ntkpipe.data.image_folder import natural_key
from ntkpipe.data.restricted_pickle import load_plain
from ntkpipe.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


@pytest.fixture
def server(tmp_path):
    """A web server on loopback over the folder `tmp_path/site`."""
    site = tmp_path / "site"
    site.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        yield site, f"http://127.0.0.1:{web.server_port}"
        web.shutdown()
        thread.join()


def test_digits():
    raw = load_raw(DataConfig())
    assert raw.x_train.shape == (1500, 8, 8, 1)
    assert raw.x_test.shape == (297, 8, 8, 1)
    assert (raw.x_train.min(), raw.x_train.max()) == (0, 1)
    assert load_dataset(DataConfig(train_size=100)).n_train == 100


def test_synthetic_is_repeatable_and_learnable():
    config = DataConfig(kind="synthetic", n_train=30, n_test=12, classes=3, shape=(2, 5, 3), noise=0.1)
    a, b = load_raw(config), load_raw(config)
    assert a.x_train.shape == (30, 2, 5, 3)
    np.testing.assert_array_equal(a.x_train, b.x_train)
    centres = np.stack([a.x_train[a.y_train == k].mean(axis=0) for k in range(3)])
    nearest = ((a.x_test[:, None] - centres) ** 2).sum(axis=(2, 3, 4)).argmin(axis=1)
    assert np.array_equal(nearest, a.y_test)
    assert not np.array_equal(a.x_train[:12], a.x_test)


# npz


def npz(path, **arrays):
    np.savez(path, **arrays)
    return DataConfig(kind="npz", path=str(path))


def arrays(n=6):
    return {
        "x_train": RNG.random((n, 2, 2, 1)),
        "y_train": np.arange(n) % 2,
        "x_test": RNG.random((2, 2, 2, 1)),
        "y_test": np.arange(2),
    }


def test_npz_names_classes(tmp_path):
    data = load_dataset(npz(tmp_path / "a.npz", **arrays(), class_names=np.array(["cat", "dog"])))
    assert data.class_names == ("cat", "dog")


def test_npz_errors(tmp_path):
    with pytest.raises(DataError, match=r"lacks x_test: save it with numpy\.savez, or"):
        load_raw(npz(tmp_path / "a.npz", **{k: v for k, v in arrays().items() if "train" in k}))
    objects = arrays()
    objects["y_train"] = np.array([{}] * 6, dtype=object)
    np.savez(tmp_path / "o.npz", **objects, allow_pickle=True)
    with pytest.raises(DataError, match="plain arrays"):
        load_raw(DataConfig(kind="npz", path=str(tmp_path / "o.npz")))
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(DataError, match="not an npz"):
        load_raw(DataConfig(kind="npz", path=str(tmp_path / "single.npy")))
    with pytest.raises(DataError, match="not a file"):
        load_raw(DataConfig(kind="npz", path=str(tmp_path / "absent.npz")))
    content = (tmp_path / "a.npz").read_bytes()
    for bad in (b"", b"hello", content[: len(content) // 2]):
        (tmp_path / "bad.npz").write_bytes(bad)
        with pytest.raises(DataError, match="cannot be read"):
            load_raw(DataConfig(kind="npz", path=str(tmp_path / "bad.npz")))


# CIFAR


def planes(n):
    return RNG.integers(0, 256, (n, 3072), dtype=np.uint8)


def python_files(kind, n=4, protocol=2):
    edition = cifar.EDITIONS[kind][0]
    key = b"labels" if kind == "cifar10" else b"fine_labels"
    files, truth = {}, {}
    for k, name in enumerate((*edition.train, edition.test)):
        data, labels = planes(n), [(k + i) % 10 for i in range(n)]
        files[name] = pickle.dumps({b"data": data, key: labels, b"batch_label": b"x"}, protocol=protocol)
        truth[name] = (data, labels)
    return edition, files, truth


def binary_files(kind, n=4):
    edition = cifar.EDITIONS[kind][1]
    files, truth = {}, {}
    for k, name in enumerate((*edition.train, edition.test)):
        data, labels = planes(n), [(k + i) % 10 for i in range(n)]
        coarse = [b"\x07" if kind == "cifar100" else b""] * n
        files[name] = b"".join(c + bytes([y]) + row.tobytes() for c, y, row in zip(coarse, labels, data, strict=True))
        truth[name] = (data, labels)
    return edition, files, truth


def write_folder(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_tar(path, folder, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def assert_equals_truth(raw, edition, truth):
    data = np.concatenate([truth[name][0] for name in edition.train])
    assert raw.y_train.tolist() == [y for name in edition.train for y in truth[name][1]]
    assert raw.y_test.tolist() == truth[edition.test][1]
    # Pixel (row 3, column 5) of the green channel: plane 1, position 3 * 32 + 5.
    np.testing.assert_array_equal(raw.x_train[:, 3, 5, 1], data[:, 1024 + 3 * 32 + 5])
    np.testing.assert_array_equal(raw.x_test.transpose(0, 3, 1, 2).reshape(-1, 3072), truth[edition.test][0])


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
@pytest.mark.parametrize("make", [python_files, binary_files])
def test_cifar_as_folder_parent_and_archive(kind, make, tmp_path):
    edition, files, truth = make(kind)
    write_folder(tmp_path / "up" / edition.folder, files)
    (tmp_path / "arc").mkdir()
    write_tar(tmp_path / "arc" / edition.archive, edition.folder, files)
    for path in ("up", f"up/{edition.folder}", "arc", f"arc/{edition.archive}"):
        raw = load_raw(DataConfig(kind=kind, path=str(tmp_path / path)))
        assert_equals_truth(raw, edition, truth)
        assert raw.class_names is not None
        assert len(raw.class_names) == (10 if kind == "cifar10" else 100)
    assert not (tmp_path / "arc" / edition.folder).exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(protocol, tmp_path):
    edition, files, truth = python_files("cifar10", protocol=protocol)
    write_folder(tmp_path / "c", files)
    assert_equals_truth(load_raw(DataConfig(kind="cifar10", path=str(tmp_path / "c"))), edition, truth)


def test_labels_as_arrays_scalars_and_fortran_order():
    data = np.asfortranarray(planes(3))
    batch = load_plain(
        pickle.dumps({"data": data, "a": np.arange(3), "b": [np.int64(7)], "c": np.arange(2, dtype=">i4")}), "x"
    )
    np.testing.assert_array_equal(batch["data"], data)
    assert batch["a"].tolist() == [0, 1, 2]
    assert batch["b"][0] == 7
    assert batch["c"].tolist() == [0, 1]


class Evil:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def executed(path):
    Path(path).touch()


def malicious(path):
    import os

    return {
        "os.system": pickle.dumps(Evil(os.system, f"touch {path}")),
        "eval": pickle.dumps(Evil(eval, f"open({str(path)!r}, 'w')")),
        "open": pickle.dumps(Evil(open, str(path), "w"), protocol=0),
        "nested": pickle.dumps({b"data": planes(1), b"labels": [Evil(os.mkdir, str(path))]}),
        "object array": pickle.dumps({b"data": np.array([Evil(os.mkdir, str(path))], dtype=object)}),
        "numpy by another name": b"cnumpy\nload\n(S'" + str(path).encode() + b"'\ntR.",
        "getattr": b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR.",
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
        "build on a function": b"\x80\x02cnumpy\ndtype\n}q\x00U\x04nameK\x01sb.",
        "build with slots": b"\x80\x02c_codecs\nencode\nN}q\x00U\x0c__defaults__K\x01s\x86b.",
        "persistent": b"Pos.system\n.",
        "extension": b"\x82\x01.",
    }


@pytest.mark.parametrize("name", sorted(malicious(Path("x"))))
def test_malicious_pickles_execute_nothing(name, tmp_path):
    target = tmp_path / "executed"
    edition, files, _ = python_files("cifar10")
    files["data_batch_3"] = malicious(target)[name]
    write_folder(tmp_path / "c", files)
    with pytest.raises(DataError, match="data_batch_3"):
        load_raw(DataConfig(kind="cifar10", path=str(tmp_path / "c")))
    assert not target.exists()
    assert edition.read(files["data_batch_1"], "x")[0].shape == (4, 3072)  # the reader is as it was


def test_damaged_pickles_are_data_errors():
    content = pickle.dumps({b"data": planes(2), b"labels": [0, 1]}, protocol=2)
    rng = np.random.default_rng(1)
    read, refused = cifar.EDITIONS["cifar10"][0].read, 0
    assert read(content, "batch")[0].shape == (2, 3072)  # undamaged
    for _ in range(300):
        damaged = bytearray(content[: rng.integers(1, 200)] if rng.random() < 0.3 else content)
        for _ in range(3):
            damaged[rng.integers(min(len(damaged), 200))] ^= 1 << rng.integers(8)
        try:
            images, labels = read(bytes(damaged), "batch")
        except DataError:
            refused += 1
        else:
            assert images.shape == (len(labels), 3072)
            assert images.dtype == np.uint8
    assert refused > 200  # the others are hit in their pixels or labels


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ({b"labels": [0]}, "needs `data`"),
        ({b"data": np.zeros((1, 3072), np.uint8)}, "needs `data`"),
        ([1, 2], "not a CIFAR batch"),
        ({b"data": np.zeros((1, 3073), np.uint8), b"labels": [0]}, "shape"),
        ({b"data": np.zeros((1, 3072), np.float32), b"labels": [0]}, "float32"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "1 labels"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": ["a"]}, "labels"),
    ],
)
def test_pickles_that_are_no_batches(batch, text):
    with pytest.raises(DataError, match=text):
        cifar.EDITIONS["cifar10"][0].read(pickle.dumps(batch), "f")


def test_absent_cifar_says_what_to_fetch(tmp_path):
    with pytest.raises(
        DataError, match=r"cifar-10-python\.tar\.gz \(md5 c58f30108f718f92721af3b95e74349a\).*download=true"
    ):
        load_raw(DataConfig(kind="cifar10", path=str(tmp_path)))
    with pytest.raises(DataError, match="eb9058c3a382ffc7106e4002c42a8d85"):
        load_raw(DataConfig(kind="cifar100", path=str(tmp_path / "nowhere")))
    edition, files, _ = python_files("cifar10")
    del files["data_batch_4"]
    write_folder(tmp_path / "part", files)
    with pytest.raises(DataError, match="lacks data_batch_4"):
        load_raw(DataConfig(kind="cifar10", path=str(tmp_path / "part")))
    write_tar(tmp_path / "a.tar.gz", edition.folder, files)
    content = (tmp_path / "a.tar.gz").read_bytes()
    for bad in (b"not a tar", content[: len(content) // 2], b""):
        (tmp_path / "bad.tar.gz").write_bytes(bad)
        with pytest.raises(DataError, match=r"bad\.tar\.gz"):
            load_raw(DataConfig(kind="cifar10", path=str(tmp_path / "bad.tar.gz")))
    _, binary, _ = binary_files("cifar10")
    binary["data_batch_2.bin"] = binary["data_batch_2.bin"][:-1]
    write_folder(tmp_path / "bin", binary)
    with pytest.raises(DataError, match=r"data_batch_2\.bin.*truncated"):
        load_raw(DataConfig(kind="cifar10", path=str(tmp_path / "bin")))


def test_cifar_labels_out_of_range(tmp_path):
    edition, files, _ = python_files("cifar10")
    files[edition.test] = pickle.dumps({b"data": planes(2), b"labels": [0, 10]}, protocol=2)
    write_folder(tmp_path / "c", files)
    with pytest.raises(DataError, match="y_test holds label 10"):
        load_dataset(DataConfig(kind="cifar10", path=str(tmp_path / "c")))


def md5(path):
    import hashlib

    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_download(server, tmp_path, monkeypatch):
    site, url = server
    edition, files, truth = python_files("cifar10")
    write_tar(site / edition.archive, edition.folder, files)
    to = tmp_path / "new" / "folder"
    config = DataConfig(kind="cifar10", path=str(to), download=True, source=f"{url}/{edition.archive}")
    with pytest.raises(DataError, match="expected c58f30108f718f92721af3b95e74349a"):
        load_raw(config)
    assert list(to.iterdir()) == []
    import dataclasses

    right = dataclasses.replace(edition, md5=md5(site / edition.archive))
    monkeypatch.setitem(cifar.EDITIONS, "cifar10", (right, cifar.EDITIONS["cifar10"][1]))
    assert_equals_truth(load_raw(config), edition, truth)
    assert [p.name for p in to.iterdir()] == [edition.archive]
    (site / edition.archive).unlink()
    assert_equals_truth(load_raw(config), edition, truth)  # not fetched again
    gone = DataConfig(kind="cifar10", path=str(tmp_path / "b.tar.gz"), download=True, source=f"{url}/none")
    with pytest.raises(DataError, match="404"):
        load_raw(gone)
    with pytest.raises(ConfigError, match="http"):
        load_raw(DataConfig(kind="cifar10", path=str(tmp_path), download=True, source="file:///etc/passwd"))


# MNIST


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_files():
    x, y = RNG.integers(0, 256, (12, 5, 4), dtype=np.uint8), (np.arange(12) % 10).astype(np.uint8)
    contents = {"x_train": x, "y_train": y, "x_test": x[:3], "y_test": y[:3]}
    return contents, {mnist.FILES[k][0]: idx(v) for k, v in contents.items()}


def test_mnist_plain_and_gzipped(tmp_path):
    contents, files = mnist_files()
    write_folder(tmp_path / "plain", files)
    write_folder(tmp_path / "gz", {f"{k}.gz": gzip.compress(v) for k, v in files.items()})
    write_folder(tmp_path / "dots", {k.replace("-idx", ".idx"): v for k, v in files.items()})
    for folder in ("plain", "gz", "dots"):
        raw = load_raw(DataConfig(kind="mnist", path=str(tmp_path / folder)))
        np.testing.assert_array_equal(raw.x_train[..., 0], contents["x_train"])
        np.testing.assert_array_equal(raw.y_test, contents["y_test"])


def test_mnist_errors(tmp_path):
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz \(md5 ec29112dd5afa0611ce80d1b7f02629c\)"):
        load_raw(DataConfig(kind="mnist", path=str(tmp_path)))
    good = idx(np.zeros((2, 3, 3), np.uint8))
    for bad, text in (
        (good[:-1], "header says 18"),
        (good + b"x", "header says 18"),
        (b"\0\0\x09\3" + good[4:], "idx"),
        (b"", "idx"),
    ):
        (tmp_path / "f").write_bytes(bad)
        with pytest.raises(DataError, match=text):
            mnist.read_idx(tmp_path / "f", 3)
    (tmp_path / "f.gz").write_bytes(gzip.compress(good)[:-9])
    with pytest.raises(DataError, match=r"f\.gz"):
        mnist.read_idx(tmp_path / "f.gz", 3)
    huge = bytes([0, 0, 8, 3]) + struct.pack(">3I", *[2**32 - 1] * 3) + b"x" * 100
    (tmp_path / "f").write_bytes(huge)
    with pytest.raises(DataError, match="damaged"):
        mnist.read_idx(tmp_path / "f", 3)


def test_mnist_download(server, tmp_path, monkeypatch):
    site, url = server
    contents, files = mnist_files()
    for name, content in files.items():
        (site / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(mnist, "FILES", {k: (n, md5(site / f"{n}.gz")) for k, (n, _) in mnist.FILES.items()})
    raw = load_raw(DataConfig(kind="mnist", path=str(tmp_path / "m"), download=True, source=url))
    np.testing.assert_array_equal(raw.x_train[..., 0], contents["x_train"])


# Image folders


def tree(n=3, mode="RGB", size=(6, 5), suffix="png"):
    files = {}
    for part, count in (("train", n), ("test", 2)):
        for name in ("owl", "bat"):
            for k in range(count):
                x = RNG.integers(0, 256, (*size, len(mode)), dtype=np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(x.squeeze()).save(buffer, format={"png": "PNG", "jpg": "JPEG"}[suffix])
                files[f"{part}/{name}/{k}.{suffix}"] = buffer.getvalue()
    return files


def save_tree(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return DataConfig(kind="image_folder", path=str(root))


def save_zip(path, files, above=""):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(above + name, content)
    return DataConfig(kind="image_folder", path=str(path))


def png(mode="RGB", size=(5, 6), value=0, **options):
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, format="PNG", **options)
    return buffer.getvalue()


def test_folder_and_zip_agree(tmp_path):
    files = tree(n=12)
    extra = {"train/owl/.hidden.png": b"x", "train/notes.txt": b"x", "train/owl/a.txt": b"x", "README": b""}
    folder = load_raw(save_tree(tmp_path / "f", {**files, **extra}))
    plain = load_raw(save_zip(tmp_path / "a.zip", {**dict(reversed(files.items())), **extra}))
    below = load_raw(save_zip(tmp_path / "b.zip", {**files, "__MACOSX/train/owl/0.png": b"x"}, above="animals/"))
    assert folder.class_names == ("bat", "owl")
    assert folder.y_train.tolist() == [0] * 12 + [1] * 12
    for other in (plain, below):
        np.testing.assert_array_equal(folder.x_train, other.x_train)
        np.testing.assert_array_equal(folder.x_test, other.x_test)
        np.testing.assert_array_equal(folder.y_test, other.y_test)
    tenth = np.asarray(Image.open(io.BytesIO(files["train/bat/10.png"])))
    np.testing.assert_array_equal(folder.x_train[10], tenth)  # 2.png comes before 10.png


def test_whatever_is_a_picture_is_read_and_the_rest_is_named(tmp_path):
    files = tree()
    jpeg = tree(suffix="jpg")["train/owl/0.jpg"]
    more = {
        "train/bat/deep/er/0.png": png(value=7),
        "train/bat/deep/1.PNG": png(value=8),
        "train/owl/photo.jfif": jpeg,
        "train/owl/photo.jpe": jpeg,
        "train/owl/no_ending": png(value=9),
        "train/owl/strange.dat": png(value=9),
        "test/owl/below/0.gif": png(value=3),
    }
    others = {
        "train/owl/notes.txt": b"x",
        "train/owl/deep/movie.mp4": b"\0" * 100,
        "train/loose.png": png(),
        "test/bat/drawing.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n",
        "train/owl/Thumbs.db": b"x",
        "train/owl/.DS_Store": b"x",
        "valid/owl/0.png": png(),
    }
    for config in (
        save_tree(tmp_path / "f", {**files, **more, **others}),
        save_zip(tmp_path / "a.zip", {**files, **more, **others}),
        save_zip(tmp_path / "b.zip", {**files, **more, **others}, above="above/"),
    ):
        raw = load_raw(config)
        assert np.bincount(raw.y_train).tolist() == [3 + 2, 3 + 4]
        assert np.bincount(raw.y_test).tolist() == [2, 3]
        assert raw.x_train[3:5, 0, 0, 0].tolist() == [8, 7]  # deep/1.PNG comes before deep/er/0.png
        above = "above/" if "b.zip" in str(config.path) else ""
        assert raw.notes == (
            f"Left out 4 files that are not pictures: {above}test/bat/drawing.eps, {above}train/loose.png, "
            f"{above}train/owl/deep/movie.mp4, ...",
            "left out folders beside train/ and test/: valid",
        )


def test_links_are_followed_once(tmp_path):
    config = save_tree(tmp_path / "f", tree())
    save_tree(tmp_path / "elsewhere", {"5.png": png(), "sub/6.png": png()})
    (tmp_path / "f" / "train" / "cow").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    raw = load_raw(config)
    assert raw.class_names == ("bat", "cow", "owl")
    assert np.bincount(raw.y_train).tolist() == [3, 2, 3]


@pytest.mark.parametrize("files", [{"0.heic": b"ftypheic", "1.heic": b"x"}, {"sub/0.txt": b"x"}, {}], ids=len)
def test_no_class_vanishes(files, tmp_path):
    config = save_tree(tmp_path / "f", {**tree(), **{f"train/dog/{name}": content for name, content in files.items()}})
    (tmp_path / "f" / "train" / "dog").mkdir(exist_ok=True)
    text = r"class 'dog' .*has no readable picture under train/" + (f".*{len(files)} files" if files else "")
    with pytest.raises(DataError, match=text):
        load_raw(config)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("train/dog/", b"")
        for path in sorted((tmp_path / "f").rglob("*.*")):
            archive.write(path, str(path.relative_to(tmp_path / "f")))
    with pytest.raises(DataError, match=text):
        load_raw(DataConfig(kind="image_folder", path=str(tmp_path / "z.zip")))


@pytest.mark.parametrize("other", ["Owl", "OWL", "owl "])
def test_classes_that_differ_in_case_alone(other, tmp_path):
    with pytest.raises(DataError, match=r"'owl'.*differ only in case or spaces"):
        load_raw(save_tree(tmp_path / "f", {**tree(), f"train/{other}/0.png": png()}))


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_pictures_are_turned_as_cameras_say(orientation, kind, tmp_path):
    blocks = np.kron(RNG.integers(0, 256, (2, 3)), np.ones((16, 16))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = saved(Image.fromarray(blocks), kind, exif=exif)
    upright = {
        1: blocks,
        2: blocks[:, ::-1],
        3: blocks[::-1, ::-1],
        4: blocks[::-1],
        5: blocks.T,
        6: blocks[::-1].T,
        7: blocks[::-1, ::-1].T,
        8: blocks.T[::-1],
    }[orientation]
    files = {f"{part}/{name}/0.{kind.lower()}": stored for part in ("train", "test") for name in ("a", "b")}
    raw = load_raw(save_tree(tmp_path / "f", files))
    assert np.abs(raw.x_train[1, ..., 0].astype(int) - upright).max() <= 2  # JPEG rounds


def test_what_a_picture_loses_is_told(tmp_path):
    rgba = Image.fromarray(RNG.integers(0, 255, (6, 5, 4), dtype=np.uint8))
    opaque = Image.new("RGBA", (5, 6), (1, 2, 3, 255))
    frames = [Image.new("RGB", (5, 6), (80 * k, 0, 0)) for k in range(3)]
    more = {
        "train/owl/10.png": saved(rgba, "PNG"),
        "train/owl/11.png": saved(opaque, "PNG"),
        "train/owl/12.gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "train/owl/13.jpg": saved(Image.new("CMYK", (5, 6), (0, 255, 255, 0)), "JPEG"),
        "train/owl/14.ppm": b"P6 5 6 65535\n" + b"\x80\x00" * 90,
    }
    raw = load_raw(save_tree(tmp_path / "f", {**tree(), **more}))
    assert raw.notes == (
        "1 pictures are CMYK: converted to RGB without a colour profile (train/owl/13.jpg)",
        "1 pictures have 16 bits per colour: read as 8 bits (train/owl/14.ppm)",
        "1 pictures have several frames: only the first is read (train/owl/12.gif)",
        "1 pictures have transparent pixels: read with their colours, without transparency (train/owl/10.png)",
    )
    assert raw.x_train[-2, 0, 0, 0] > 200  # CMYK without cyan is red
    assert raw.x_train[-1, 0, 0, 0] == 128
    np.testing.assert_array_equal(raw.x_train[-4, 0, 0], [1, 2, 3])


def test_natural_order():
    names = ["10.png", "9.png", "a2b10", "a2b9", "a10b1", "009.png", "b"]
    assert sorted(names, key=natural_key) == ["009.png", "9.png", "10.png", "a2b9", "a2b10", "a10b1", "b"]


def test_gray_and_mixed_modes(tmp_path):
    gray = tree(mode="L")
    assert load_raw(save_tree(tmp_path / "g", gray)).x_train.shape == (6, 6, 5, 1)
    for k, extra in enumerate((png("RGB"), png("RGBA"), png("P"), png("P", transparency=b"\x01\x02"))):
        mixed = load_raw(save_tree(tmp_path / str(k), {**gray, "train/owl/7.png": extra}))
        assert mixed.x_train.shape == (7, 6, 5, 3)
        assert np.array_equal(mixed.x_train[0, ..., 0], mixed.x_train[0, ..., 2])
    with pytest.raises(DataError, match=r"7\.png.*8 bits"):
        load_raw(save_tree(tmp_path / "deep", {**gray, "train/owl/7.png": png("I;16")}))


def test_sizes(tmp_path):
    import dataclasses

    config = save_tree(tmp_path / "s", {**tree(), "train/owl/3.png": png(size=(7, 6))})
    with pytest.raises(DataError, match=r"train/owl/3\.png has 6 x 7 pixels .*image_size"):
        load_raw(config)
    resized = load_raw(dataclasses.replace(config, image_size=(4, 8)))
    assert resized.x_train.shape == (7, 4, 8, 3)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train/owl/3.png": b"no image"}, r"train/owl/3\.png .*cannot be read"),
        ({"train/owl/3.png": png()[:45]}, r"train/owl/3\.png .*cannot be read"),
        ({"test/cow/0.png": png()}, r"test/cow/0\.png .*class"),
    ],
)
def test_bad_files_are_named(changes, text, tmp_path):
    files = {**tree(), **changes}
    for config in (save_tree(tmp_path / "f", files), save_zip(tmp_path / "z.zip", files)):
        with pytest.raises(DataError, match=text):
            load_raw(config)


def test_layout_errors(tmp_path):
    only_train = {k: v for k, v in tree().items() if k.startswith("train")}
    with pytest.raises(DataError, match="no images under test/"):
        load_raw(save_tree(tmp_path / "f", only_train))
    with pytest.raises(DataError, match="several data sets"):
        load_raw(save_zip(tmp_path / "a.zip", {**tree(), **{f"b/{k}": v for k, v in tree().items()}}))
    with pytest.raises(DataError, match="neither"):
        load_raw(DataConfig(kind="image_folder", path=str(tmp_path / "none")))
    (tmp_path / "bad.zip").write_bytes(b"PK not a zip")
    with pytest.raises(DataError, match="zip of images"):
        load_raw(DataConfig(kind="image_folder", path=str(tmp_path / "bad.zip")))
    config = save_zip(tmp_path / "flip.zip", tree())
    content = bytearray((tmp_path / "flip.zip").read_bytes())
    content[60] ^= 1  # inside the first stored image
    (tmp_path / "flip.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"damaged|cannot be read"):
        load_raw(config)


def test_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    files = {**tree(), "train/owl/3.png": png(size=(15, 10))}
    with pytest.raises(DataError, match=r"train/owl/3\.png is refused"):
        load_raw(save_tree(tmp_path / "f", files))
    monkeypatch.setattr(image_folder, "_FILE_BYTES", 10)
    for config in (save_tree(tmp_path / "g", tree()), save_zip(tmp_path / "g.zip", tree())):
        with pytest.raises(DataError, match="MB"):
            load_raw(config)


def test_jpeg(tmp_path):
    raw = load_raw(save_tree(tmp_path / "j", tree(suffix="jpg")))
    assert raw.x_train.dtype == np.uint8
    assert raw.x_train.shape == (6, 6, 5, 3)


@pytest.mark.slow
def test_sixty_thousand_images_from_a_zip(cifar10_subset):
    path = cifar10_subset.with_name("cifar10_jpeg.zip")
    raw = load_raw(DataConfig(kind="image_folder", path=str(path)))
    assert raw.x_train.shape == (50_000, 32, 32, 3)
    assert raw.x_test.shape == (10_000, 32, 32, 3)
    assert raw.class_names == cifar._CIFAR10_NAMES
    assert np.bincount(raw.y_train).tolist() == [5000] * 10
    assert np.bincount(raw.y_test).tolist() == [1000] * 10
