//! The terminal, for as long as it is ours: keys without Enter, a screen of its own, everything given back.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    termios::{self, LocalModes, OptionalActions, Termios},
};

/// A screen of our own without a cursor, and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the first line; the rest of a line; everything below.
const HOME: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K";
const BELOW: &str = "\x1b[J";
/// What Ctrl-C and Ctrl-D send while the terminal raises no signals for them.
const ENDS: [u8; 4] = [b'q', b'Q', 3, 4];

/// A terminal that was taken; given back when it is dropped.
pub(super) struct Screen {
    before: Termios,
}

impl Screen {
    /// Takes the terminal of standard input and output.
    pub(super) fn take() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut ours = before.clone();
        ours.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        termios::tcsetattr(io::stdin(), OptionalActions::Flush, &ours)?;
        let screen = Self { before };
        write(ENTER)?;
        Ok(screen)
    }

    /// Columns and lines.
    pub(super) fn size(&self) -> (u16, u16) {
        let size = termios::tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
        size.map_or((80, 24), |size| (size.ws_col, size.ws_row))
    }

    /// Shows these lines and nothing else.
    pub(super) fn show(&mut self, lines: &[String]) -> io::Result<()> {
        let (_, most) = self.size();
        let shown = lines.iter().take(usize::from(most));
        let text: Vec<_> = shown.map(|line| format!("{line}{REST_OF_LINE}")).collect();
        write(&format!("{HOME}{}{BELOW}", text.join("\r\n")))
    }

    /// Waits so long for a key that ends it; other keys cut the wait short.
    pub(super) fn quits_within(&mut self, wait: Duration) -> io::Result<bool> {
        let stdin = io::stdin();
        let mut ready = [PollFd::new(&stdin, PollFlags::IN)];
        match poll(&mut ready, Some(&timespec(wait))) {
            // A signal: the size of the window, most likely.
            Ok(0) | Err(Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut keys = [0; 64];
        let n = rustix::io::read(&stdin, &mut keys)?;
        Ok(n == 0 || keys[..n].iter().any(|key| ENDS.contains(key)))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _ = write(LEAVE);
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}

/// Waits without a key.
pub(super) fn pause(wait: Duration) {
    // Cut short by a signal, the rates are over less than a second: they are computed from the time that went by.
    let _ = poll(&mut [], Some(&timespec(wait)));
}

fn timespec(wait: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX), tv_nsec: wait.subsec_nanos().into() }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
