# URL OUTPUT ENOUGH BUNDLE: downloads until ENOUGH bytes are there, is killed, and continues with wget -c.
set -eu
# GnuTLS reads no variable: the one client that has to be told on its command line.
set -- "$1" "$2" "$3" "--ca-certificate=$4"
wget --no-verbose "$4" --limit-rate=8m -O "$2" "$1" &
pid=$!
turns=0
while [ "$(stat -c %s "$2" 2>/dev/null || echo 0)" -lt "$3" ] && [ $turns -lt 1200 ] && kill -0 $pid 2>/dev/null; do
    turns=$((turns + 1))
    sleep 0.05
done
kill -9 $pid 2>/dev/null || true
wait $pid 2>/dev/null || true
echo "interrupted at $(stat -c %s "$2")"
exec wget --no-verbose "$4" -c -O "$2" "$1"
