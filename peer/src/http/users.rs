//! Who may use the proxy: names and passwords of a file, as Basic credentials (RFC 7617) [pure].

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::{Engine as _, engine::general_purpose::STANDARD};

/// The challenge of a 407.
pub const CHALLENGE: &str = "Basic realm=\"pondhawk\", charset=\"UTF-8\"";
/// Lines of a file, as each is compared with every request.
const MAX_USERS: usize = 256;

/// The file is not one of names and passwords. Says no password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsersError {
    /// A line without a colon, or with nothing before it.
    #[error("line {0} is not name:password")]
    Line(usize),
    /// No line at all: nobody could use the proxy.
    #[error("it names nobody")]
    Nobody,
    /// Too many lines.
    #[error("it has more than {MAX_USERS} lines")]
    TooMany,
}

/// Names and passwords.
pub struct Users(Vec<Vec<u8>>);

impl Users {
    /// Reads lines of `name:password`; empty lines and those that begin with `#` are skipped.
    ///
    /// # Errors
    /// [`UsersError`], by line.
    pub fn parse(text: &str) -> Result<Self, UsersError> {
        let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim_end_matches('\r')));
        let lines = lines.filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        let user = |(number, line): (usize, &str)| match line.find(':') {
            None | Some(0) => Err(UsersError::Line(number)),
            Some(_) => Ok(line.as_bytes().to_vec()),
        };
        let users = lines.map(user).collect::<Result<Vec<_>, _>>()?;
        match users.len() {
            0 => Err(UsersError::Nobody),
            1..=MAX_USERS => Ok(Self(users)),
            _ => Err(UsersError::TooMany),
        }
    }

    /// Whether the value of Proxy-Authorization is of one of them. Takes the same time for every wrong password of a length.
    pub fn admit(&self, value: Option<&[u8]>) -> bool {
        let given = value.and_then(|value| {
            let (scheme, credentials) = value.split_at_checked(6)?;
            scheme.eq_ignore_ascii_case(b"basic ").then(|| STANDARD.decode(credentials.trim_ascii()).ok())?
        });
        given.is_some_and(|given| {
            self.0.iter().fold(false, |found, user| verify_slices_are_equal(user, &given).is_ok() | found)
        })
    }
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Users({})", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_with_its_own_password_is_admitted() {
        let users = Users::parse("# who\n\nalice:open sesame\nbob:a:b\r\n").unwrap();
        let admit = |text: &str| users.admit(Some(format!("basic {}", STANDARD.encode(text)).as_bytes()));
        assert!(admit("alice:open sesame") && admit("bob:a:b"));
        for wrong in ["alice:", "alice:a:b", "bob:open sesame", "", "alice:open sesame "] {
            assert!(!admit(wrong), "{wrong}");
        }
        assert!(!users.admit(None) && !users.admit(Some(b"Basic !!!")) && !users.admit(Some(b"Bearer YTpi")));
        assert_eq!(format!("{users:?}"), "Users(2)");
    }

    #[test]
    fn a_file_that_is_none_says_where() {
        assert_eq!(Users::parse("a:b\nc\n").unwrap_err(), UsersError::Line(2));
        assert_eq!(Users::parse(":b").unwrap_err(), UsersError::Line(1));
        assert_eq!(Users::parse("#\n").unwrap_err(), UsersError::Nobody);
    }
}
