//! Connections that are not ours, in mode `all`: they reach where they were going, byte for byte.

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
};

use crate::{
    raw::{client, echo, next, serve, swap},
    site::{Setting, Site, on_site},
};

fn all() -> Setting {
    Setting { mode: "all", ..Setting::default() }
}

/// Sends `hello` in two parts and prints whether exactly it came back.
const SEND_HELLO: &str = r"
s.sendall(hello[:7]); s.sendall(hello[7:]); s.shutdown(socket.SHUT_WR)
print(rest(s) == hello)
";

#[test]
fn a_client_hello_that_is_not_for_us_arrives_as_it_was_sent() {
    on_site("a_client_hello_that_is_not_for_us_arrives_as_it_was_sent", all(), |site| {
        let to = site.second_address();
        let made = serve(&site.lab().hub().netns, to, 4, echo);
        let hellos = [
            ("other_host", "hello = hello('huggingface.co')"),
            ("other_host", "hello = hello('notcdn-lfs.huggingface.co')"),
            ("no_server_name", "hello = hello(None)"),
            (
                "ech",
                "hello = with_extension(hello('cdn-lfs.huggingface.co'), b'\\xfe\\x0d\\x00\\x04\\x00\\x01\\x00\\x01')",
            ),
        ];
        for (reason, script) in hellos {
            let before = site.passed(reason);
            assert_eq!(client(site, to, &format!("{script}{SEND_HELLO}"), &[]), "True", "{script}");
            assert_eq!(site.passed(reason), before + 1, "{script}");
            assert_eq!(next(&made).unwrap()[0], 22, "{script}: a handshake record came");
        }
    });
}

#[test]
fn bytes_that_are_no_tls_are_passed_on() {
    on_site("bytes_that_are_no_tls_are_passed_on", all(), |site| {
        let to = site.second_address();
        let made = serve(&site.lab().hub().netns, to, 2, echo);
        let before = site.passed("not_tls");
        for sent in ["GET / HTTP/1.1", "\x16"] {
            let script = "s.sendall(sys.argv[2].encode()); s.shutdown(1); print(rest(s).decode() == sys.argv[2])";
            assert_eq!(client(site, to, script, &[sent]), "True");
            assert_eq!(next(&made).unwrap(), sent.as_bytes());
        }
        assert_eq!(site.passed("not_tls"), before + 2);
    });
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    on_site("a_server_that_speaks_first_is_heard", all(), |site| {
        let to = site.second_address();
        let made = serve(&site.lab().hub().netns, to, 1, |mut stream| {
            stream.write_all(b"220 ready\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        });
        let before = site.passed("silent");
        let script = "print(s.makefile().readline().strip()); s.sendall(b'HELO'); s.shutdown(1); print(rest(s))";
        assert_eq!(client(site, to, script, &[]), "220 ready\nb''");
        assert_eq!(next(&made).unwrap(), "HELO");
        assert_eq!(site.passed("silent"), before + 1);
    });
}

#[test]
fn either_end_may_close_its_direction_first() {
    on_site("either_end_may_close_its_direction_first", all(), |site| {
        let to = site.second_address();
        let made = serve(&site.lab().hub().netns, to, 1, |mut stream| {
            let mut first = [0; 4];
            stream.read_exact(&mut first)?;
            stream.write_all(b"that is all from me")?;
            stream.shutdown(Shutdown::Write)?;
            let mut all = String::new();
            stream.read_to_string(&mut all)?;
            Ok(all.len())
        });
        let script = "s.sendall(b'ping'); print(rest(s)); s.sendall(b'x' * 1000000); s.shutdown(1); print(rest(s))";
        assert_eq!(client(site, to, script, &[]), "b'that is all from me'\nb''");
        assert_eq!(next(&made).unwrap(), 1_000_000);
    });
}

/// A client that had nothing to say and closed its direction at once was taken for one that had left.
#[test]
fn a_client_that_closes_its_direction_without_a_byte_still_gets_the_servers() {
    on_site("a_client_that_closes_its_direction_without_a_byte_still_gets_the_servers", all(), |site| {
        let to = site.second_address();
        let made = serve(&site.lab().hub().netns, to, 1, |mut stream| {
            let read = stream.read(&mut [0; 16])?;
            stream.write_all(b"the time is now")?;
            Ok(read)
        });
        assert_eq!(client(site, to, "s.shutdown(1); print(rest(s))", &[]), "b'the time is now'");
        assert_eq!(next(&made).unwrap(), 0);
    });
}

/// An end of the stream in its place would make a cut answer look complete.
#[test]
fn a_reset_of_either_end_is_a_reset_at_the_other() {
    on_site("a_reset_of_either_end_is_a_reset_at_the_other", all(), |site| {
        let to = site.second_address();
        let made = serve(&site.lab().hub().netns, to, 1, |mut stream| {
            stream.read_exact(&mut [0; 4])?;
            stream.write_all(b"half of it")?;
            stream.read_exact(&mut [0; 2])?;
            socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))
        });
        let script = r"
s.sendall(b'ping'); print(s.recv(10)); s.sendall(b'ok')
try: print('ended', rest(s))
except ConnectionResetError: print('reset')
";
        assert_eq!(client(site, to, script, &[]), "b'half of it'\nreset");
        next(&made).unwrap();
        let made = serve(&site.lab().hub().netns, (to.ip(), 443).into(), 1, |mut stream| {
            stream.read_exact(&mut [0; 4])?;
            stream.write_all(b"go")?;
            stream.read(&mut [0; 16])
        });
        let script = "s.sendall(b'ping'); s.recv(2)\n\
                      s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.close()";
        assert_eq!(client(site, to, script, &[]), "");
        let seen = next(&made);
        assert!(seen.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset), "{seen:?}");
    });
}

#[test]
fn a_destination_that_refuses_is_a_reset_and_no_wait() {
    on_site("a_destination_that_refuses_is_a_reset_and_no_wait", all(), |site| {
        let to = site.second_address();
        let script = r"
try:
    s.sendall(b'ping')
    print('ended', rest(s))
except ConnectionResetError: print('reset')
";
        assert_eq!(client(site, to, script, &[]), "reset");
    });
}

const GIB: u64 = 1 << 30;

/// Sends argv[2] bytes of which no MiB is like another; prints the SHA-256 of what was sent, and of what came back.
const SWAP: &str = r"
sent, block = hashlib.sha256(), bytearray(hashlib.sha256(b'seed').digest() * 32768)
for n in range(int(sys.argv[2]) >> 20):
    block[:8] = struct.pack('>Q', n); block[500000:500008] = struct.pack('>Q', n)
    sent.update(block); s.sendall(block)
s.shutdown(1)
came, buffer, total = hashlib.sha256(), bytearray(1 << 20), 0
while n := s.recv_into(buffer): came.update(memoryview(buffer)[:n]); total += n
print(total, sent.hexdigest(), came.hexdigest())
";

fn swaps(site: &Site, bytes: u64) {
    let to = site.second_address();
    let made = serve(&site.lab().hub().netns, to, 1, swap);
    let told = client(site, to, SWAP, &[&bytes.to_string()]);
    let (total, came, sent) = next(&made).unwrap();
    assert_eq!(told, format!("{bytes} {came} {sent}"));
    assert_eq!(total, bytes);
}

#[test]
fn a_gibibyte_each_way_is_passed_through_intact() {
    on_site("a_gibibyte_each_way_is_passed_through_intact", all(), |site| {
        let before = site.passed("not_tls");
        swaps(site, GIB);
        assert_eq!(site.passed("not_tls"), before + 1);
        for direction in ["up", "down"] {
            let series = format!("pondhawk_passthrough_bytes_total{{direction=\"{direction}\"}}");
            let counted =
                pondhawk_bench::lab::wait_until(crate::site::SOON, || (site.metric(&series) >= GIB).then_some(()));
            counted.unwrap_or_else(|| panic!("{direction}: {}", site.metric(&series)));
        }
    });
}
