"""As datasets and pandas read: ranges of 5 MiB in no order, of one file of the Hub. REPO FILE -> the path of what they make up."""
import os
import random
import sys

from huggingface_hub import HfFileSystem

STRIDE = 5 << 20
name = f"{sys.argv[1]}/{sys.argv[2]}"
fs = HfFileSystem()
size = fs.info(name)["size"]
offsets = list(range(0, size, STRIDE))
random.Random(7).shuffle(offsets)
path = os.path.abspath("pieces.bin")
with fs.open(name, "rb", block_size=STRIDE) as source, open(path, "wb") as out:
    for offset in offsets:
        source.seek(offset)
        out.seek(offset)
        out.write(source.read(min(STRIDE, size - offset)))
print(path)
