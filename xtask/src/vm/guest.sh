#!/bin/busybox sh
# The only process that a virtual machine of `cargo xtask vm` starts: a hub, a node and clients on its own kernel, what
# came of them as lines `vm: KEY VALUE` on the console, and the end. The host judges.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev 2>/dev/null
mount -t tmpfs none /tmp
mount -t cgroup2 none /sys/fs/cgroup

report() { echo "vm: $*"; }
# Waits up to a minute for a line in a file, or for the end of the process that writes it.
await() {
    tries=0
    until grep -q "$2" "$1"; do
        tries=$((tries + 1))
        { [ -d "/proc/$3" ] && [ "$tries" -lt 600 ]; } || return 1
        sleep 0.1
    done
}
count() { report "$1 $(wget -qO- "$2" | tr -d '\n')"; }
requests() {
    report "$1-requests" "$(wget -qO- http://127.0.0.1:65002/metrics | grep '^pondhawk_requests_total{.* [1-9]' | tr '\n' ' ')"
}
finish() {
    sed 's/^/node: /' /tmp/node.log
    report finished
    poweroff -f
}

report release "$(uname -r)"
for module in /modules/*; do insmod "$module"; done
mount -t ext4 /dev/vda /data || report disk none
tls=$(grep -w -o tls /proc/sys/net/ipv4/tcp_available_ulp)
report ktls "${tls:-none}"
ip link set lo up
ip address add 192.0.2.10/32 dev lo

hub=http://192.0.2.10/_hub/stats
pondhawk-hub --listen 192.0.2.10:443 --plain 192.0.2.10:80 --dns 127.0.0.1:53 --ca-out /tmp/hub.pem \
    --file "lab/model/weights.bin:$FILE_SIZE" >/tmp/hub.log 2>&1 &
await /tmp/hub.log 'dns ready' $! || { sed 's/^/hub: /' /tmp/hub.log; report hub failed; }
mkdir -p /etc/ssl/certs
cp /tmp/hub.pem /etc/ssl/certs/ca-certificates.crt
sha=$(sed -n 's|^\([0-9a-f]\{64\}\)  lab/model/weights.bin$|\1|p' /tmp/hub.log)
url=https://huggingface.co/lab/model/resolve/main/weights.bin

# Emulation is slow, and nothing hangs here: connections are to be caught all the same.
pondhawk up --set data_dir=/data --set origin.allow_private=true \
    --set store.quota=400MiB --set store.keep_free=0 --set intercept.heartbeat_max_silence=1min 2>/tmp/node.log &
node=$!
if ! await /tmp/node.log 'node up' $node; then
    wait $node
    report ended "$?: $(tail -n 1 /tmp/node.log)"
    finish
fi
report up "$(sed -n 's/.*node up //p' /tmp/node.log)"
report uncaught "$(sed -n 's/.*connections are not intercepted: //p' /tmp/node.log)"

# Clients that know nothing of the node, twice; then one that is told of it, which needs no BPF.
for round in first second; do
    pondhawk-bench load --ca /data/ca/ca.pem --follow --requests 1 --timeout 120 --sha256 "$sha" \
        --json /tmp/load.json "$url" >/tmp/load.log 2>&1
    report "$round" "$? $(sed -n 's/^  "\(completed\|failed\)": \([0-9]*\),$/\1=\2/p' /tmp/load.json | tr '\n' ' ')"
    sed 's/^/client: /' /tmp/load.log
    count "$round-hub" $hub
    requests "$round"
done
pondhawk get --quiet --output /tmp/weights.bin --digest "sha256:$sha" hf://lab/model/weights.bin \
    >/tmp/get.log 2>&1
report get "$? $(tail -n 1 /tmp/get.log)"
count get-hub $hub
requests get

kill -TERM $node
wait $node
report stopped $?
finish
