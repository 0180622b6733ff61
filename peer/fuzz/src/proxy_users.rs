//! The file of proxy users: exactly its lines are admitted, whatever the credentials of a request look like.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use pondhawk::http::users::Users;

/// Runs the target: credentials up to the first NUL byte, then the file.
pub fn run(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (Some(credentials), Some(file)) = (parts.next(), parts.next()) else { return };
    let Ok(file) = std::str::from_utf8(file) else { return };
    let Ok(users) = Users::parse(file) else { return };
    assert!(!users.admit(None));
    let lines: Vec<&str> = file.lines().map(|line| line.trim_end_matches('\r')).collect();
    let is_line = |given: &[u8]| lines.iter().any(|line| line.as_bytes() == given && !line.starts_with('#'));
    let value = [b"Basic ", STANDARD.encode(credentials).as_bytes()].concat();
    assert_eq!(
        users.admit(Some(&value)),
        is_line(credentials) && credentials.iter().position(|b| *b == b':') > Some(0)
    );
    users.admit(Some(credentials));
}
