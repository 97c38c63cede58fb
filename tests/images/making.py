"""Data sets small enough to read: every kind of place that captioned images lie in."""

import io
import json
import tarfile

from PIL import Image


def picture(number, size=(32, 32)):
    """A picture of one colour, by which it can be told."""
    return Image.new("RGB", size, (number, 255 - number, number // 2))


def number_of(image):
    """Which picture a tensor is."""
    return round(image[0, 0, 0].item() * 255)


def png(number, size=(32, 32)):
    into = io.BytesIO()
    picture(number, size).save(into, "PNG")
    return into.getvalue()


def folder(path, count=12, size=(32, 32)):
    """Images with .txt beside them."""
    path.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        (path / f"{n:03d}.png").write_bytes(png(n, size))
        (path / f"{n:03d}.txt").write_text(f"picture {n}\n")
    return path


def listed(path, count=12):
    """Images with metadata.jsonl."""
    path.mkdir(parents=True, exist_ok=True)
    lines = []
    for n in range(count):
        (path / f"{n:03d}.png").write_bytes(png(n))
        lines.append(json.dumps({"file_name": f"{n:03d}.png", "text": f"picture {n}", "number": n}))
    (path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return path


def shard(file, numbers, notes=".txt"):
    """A WebDataset shard."""
    with tarfile.open(file, "w") as tar:
        for n in numbers:
            text = f"picture {n}" if notes == ".txt" else json.dumps({"text": f"picture {n}", "number": n})
            for suffix, raw in ((".png", png(n)), (notes, text.encode())):
                member = tarfile.TarInfo(f"data/{n:03d}{suffix}")
                member.size = len(raw)
                tar.addfile(member, io.BytesIO(raw))
    return file


def shards(path, count=12):
    """Two of them."""
    path.mkdir(parents=True, exist_ok=True)
    shard(path / "a.tar", range(count // 2))
    shard(path / "b.tar", range(count // 2, count), ".json")
    return path


def rows(count):
    return {
        "image": [{"bytes": png(n), "path": None} for n in range(count)],
        "text": [f"picture {n}" for n in range(count)],
        "number": list(range(count)),
    }


def parquet(path, count=12):
    """Two files, the first of two row groups."""
    import pyarrow
    import pyarrow.parquet

    path.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(rows(count))
    pyarrow.parquet.write_table(table.slice(0, count // 2), path / "a.parquet", row_group_size=count // 4)
    pyarrow.parquet.write_table(table.slice(count // 2), path / "b.parquet")
    return path


def on_disk(path, count=12, indices=None):
    """What ``datasets.Dataset.save_to_disk`` writes: arrow streams and state.json, which names them."""
    import pyarrow

    path.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(rows(count))
    files = [f"data-0000{n}-of-00002.arrow" for n in range(2)]
    for n, name in enumerate(files):
        part = table.slice(n * count // 2, count // 2)
        with pyarrow.OSFile(str(path / name), "wb") as into, pyarrow.ipc.new_stream(into, part.schema) as stream:
            stream.write_table(part, max_chunksize=count // 4)
    state = {"_data_files": [{"filename": name} for name in files], "_indices_data_files": indices}
    (path / "state.json").write_text(json.dumps(state))
    return path
