#!/usr/bin/env bash
# zstandard 0.25.0: stream_reader ends without an error where a file is cut off in the middle of a frame.
#
# A copy or download that broke off reads as a shorter text; decompress() of the same bytes raises.
# decompressobj() says by its attribute eof whether a frame has ended.
# Seen on 2026-11-28, Python 3.11, x86-64 Linux.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
environment zstandard==0.25.0
seen=$("$python" - <<'PYTHON'
import io, random, zstandard

whole = random.Random(1).randbytes(1_000_000)
half = zstandard.ZstdCompressor().compress(whole)[:500_000]
read = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(half)).read()
print("stream_reader: no error, a beginning of the text:", 0 < len(read) < len(whole) and whole.startswith(read))
frame = zstandard.ZstdDecompressor().decompressobj()
frame.decompress(half)
print("decompressobj: eof", frame.eof)
try:
    zstandard.ZstdDecompressor().decompress(half)
except zstandard.ZstdError:
    print("decompress: raises")
PYTHON
)
same "stream_reader: no error, a beginning of the text: True
decompressobj: eof False
decompress: raises" "$seen"
