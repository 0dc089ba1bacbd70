"""Time of writing, listing and resuming with receipts as one object each, and packed into segments.

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
from ntkpipe.tiles.grid import Tile
from ntkpipe.tiles.identity import GramIdentity
from ntkpipe.tiles.receipt import Receipt
from ntkpipe.tiles.segment import SEGMENT
from ntkpipe.tiles.store import GramStore


def timed(name: str, call: Callable[[], object], gram: GramStore) -> None:
    """Run some work, and print its seconds and requests."""
    before = gram.objects.statistics().requests
    start, cpu = time.perf_counter(), time.process_time()
    result = call()
    asked = gram.objects.statistics().requests - before
    seconds = f"{time.perf_counter() - start:9.2f} s{time.process_time() - cpu:9.2f} s of CPU"
    print(f"  {name:<42}{seconds}{f'{asked:9,} requests' if asked else ''}   {result}")


def resume(gram: GramStore) -> int:
    """Find missing tiles, as a new process does."""
    gram.ledger("train").reread()
    return sum(1 for _ in gram.missing("train"))


def parse_all(gram: GramStore, n: int) -> int:
    """Read every receipt, as `ntkpipe verify` and the start of a Gram stage do."""
    ledger = gram.ledger("train")
    ledger.reread()
    return sum(
        isinstance(found, Receipt) for *_, found in ledger.read([(t.i, t.j) for t in islice(gram.grid("train"), n)])
    )


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
        origin = {"ntkpipe": "0.1.0", "python": "3.11.9", "machine": "x86_64", "jax": "0.10.2", "numpy": "2.4.6"}
        print(f"{options.receipts:,} receipts in {objects.url}")
        for packing in (False, True):
            identity = GramIdentity(f"packing={packing}", "arch", "1", "float32", "float32", edge, rows * edge, 0)
            gram = GramStore.create_or_open(objects, identity)

            def put(tile: Tile, gram: GramStore = gram) -> None:
                key, crcs = gram.layout.receipt_key("train", tile.i, tile.j), {"nngp": 1, "ntk": 2}
                receipt = Receipt(gram.identity.key, "train", tile.i, tile.j, crcs, seconds=0.5, provenance=origin)
                objects.put(key, receipt.to_bytes())

            def write(gram: GramStore = gram, put: Callable[[Tile], None] = put, packing: bool = packing) -> str:
                with ThreadPoolExecutor(options.threads) as pool:
                    tiles = islice(gram.grid("train"), options.receipts)
                    while group := list(islice(tiles, SEGMENT)):
                        list(pool.map(put, group))
                        if packing:
                            gram.ledger("train").compact()
                return ""

            print("packed every thousand, as a driver does" if packing else "one object each")
            timed("written", write, gram)
            timed("tiles that are missing, in a new process", lambda gram=gram: resume(gram), gram)
            timed("every receipt read and checked", lambda gram=gram: parse_all(gram, options.receipts), gram)
            timed("bytes", lambda gram=gram: f"{usage(objects, gram.name):,}", gram)


if __name__ == "__main__":
    main()
