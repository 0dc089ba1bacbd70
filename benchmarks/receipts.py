"""Receipts as one object each, and packed into segments: how long writing, listing and resuming take.

python benchmarks/receipts.py --receipts 100000
python benchmarks/receipts.py --receipts 5000 --url s3://BUCKET/PREFIX    (credentials and endpoint in the environment)
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from ntkpipe.storage.store import open_store
from ntkpipe.tiles.catalogue import usage
from ntkpipe.tiles.identity import GramIdentity
from ntkpipe.tiles.receipt import Receipt
from ntkpipe.tiles.store import GramStore


def timed(name: str, call: Callable[[], object], gram: GramStore) -> None:
    """Run and print seconds and requests."""
    before = gram.objects.statistics().requests
    start = time.perf_counter()
    result = call()
    asked = gram.objects.statistics().requests - before
    print(f"  {name:<42}{time.perf_counter() - start:9.2f} s{f'{asked:9,} requests' if asked else ''}   {result}")


def resume(gram: GramStore) -> int:
    """What a new process does: tiles that are missing."""
    gram.ledger("train").reread()
    return sum(1 for _ in gram.missing("train"))


def parse_all(gram: GramStore, n: int) -> int:
    """Every receipt, as a check of all of them does."""
    ledger = gram.ledger("train")
    ledger.reread()
    found = 0
    for tile in islice(gram.grid("train"), n):
        receipt = ledger.known(tile.i, tile.j) or ledger.current(tile.i, tile.j)
        found += receipt is not None
    return found


def main() -> None:
    """Write receipts, measure, pack, measure again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--receipts", type=int, default=100_000)
    parser.add_argument("--url", default=None)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        objects = open_store(options.url or folder)
        edge = 100
        rows = int((2 * options.receipts) ** 0.5) + 2
        identity = GramIdentity("data", "arch", "1", "float32", "float32", edge, rows * edge, 0)
        gram = GramStore.create_or_open(objects, identity)
        origin = {"ntkpipe": "0.1.0", "python": "3.11.9", "machine": "x86_64", "jax": "0.10.2", "numpy": "2.4.6"}

        def put(tile) -> None:
            receipt = Receipt(
                identity.key, "train", tile.i, tile.j, {"nngp": 1, "ntk": 2}, seconds=0.5, provenance=origin
            )
            objects.put(gram.layout.receipt_key("train", tile.i, tile.j), receipt.to_bytes())

        def write() -> str:
            with ThreadPoolExecutor(options.threads) as pool:
                for _ in pool.map(put, islice(gram.grid("train"), options.receipts)):
                    pass
            return ""

        print(f"{options.receipts:,} receipts in {objects.url}")
        timed("written, one object each", write, gram)
        print("one object each")
        timed("resume: which tiles are missing", lambda: resume(gram), gram)
        if options.url is None:
            timed("every receipt parsed", lambda: parse_all(gram, options.receipts), gram)
        timed("bytes", lambda: f"{usage(objects, gram.name):,}", gram)
        timed("packed", lambda: f"{gram.ledger('train').compact()} segments", gram)
        print("in segments")
        timed("resume: which tiles are missing", lambda: resume(gram), gram)
        timed("every receipt parsed", lambda: parse_all(gram, options.receipts // 1000 * 1000), gram)
        timed("bytes", lambda: f"{usage(objects, gram.name):,}", gram)


if __name__ == "__main__":
    main()
