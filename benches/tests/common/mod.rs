//! A blocking HTTP/1.1 client that shows exactly what came over the socket.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// A response as it came, the body as far as it came.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    /// Chunked framing undone.
    pub(crate) body: Vec<u8>,
    /// How the connection ended before the body was whole.
    pub(crate) broken: Option<io::ErrorKind>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// One request on one connection.
pub(crate) fn request(address: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    exchange(&mut stream, method, target, headers, body)
}

/// One request on this stream, which is at its end afterwards.
pub(crate) fn exchange(
    stream: &mut (impl Read + Write),
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let mut head = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str("Host: localhost\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    read_reply(stream, method == "HEAD")
}

pub(crate) fn get(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Reply {
    request(address, "GET", target, headers, b"")
}

fn read_reply(stream: &mut impl Read, head_only: bool) -> Reply {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let error = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break None,
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(error) => break Some(error.kind()),
        }
    };
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a response head");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let body = bytes.split_off(end + 4);
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let mut reply = Reply { status, headers, body, broken: error };
    if reply.header("transfer-encoding") == Some("chunked") && !head_only {
        let whole = unchunk(&mut reply.body);
        reply.broken = (!whole).then_some(error.unwrap_or(io::ErrorKind::UnexpectedEof));
    } else if let Some(length) = reply.header("content-length").map(|length| length.parse::<usize>().unwrap())
        && !head_only
        && status != 304
    {
        let whole = reply.body.len() == length;
        reply.broken = (!whole).then_some(error.unwrap_or(io::ErrorKind::UnexpectedEof));
    }
    reply
}

/// Replaces the chunks by their content; false: the last chunk is missing.
fn unchunk(body: &mut Vec<u8>) -> bool {
    let mut content = Vec::new();
    let mut rest = body.as_slice();
    let whole = loop {
        let Some(end) = rest.windows(2).position(|window| window == b"\r\n") else { break false };
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            break true;
        }
        let data = &rest[end + 2..];
        content.extend_from_slice(&data[..size.min(data.len())]);
        if data.len() < size + 2 {
            break false;
        }
        rest = &data[size + 2..];
    };
    *body = content;
    whole
}
