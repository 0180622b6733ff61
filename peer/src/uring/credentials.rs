//! Which user is at the other end of a Unix socket, as the kernel recorded it when the connection was made.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// The most supplementary groups that a process can have (NGROUPS_MAX, credentials(7)).
const MAX_GROUPS: usize = 65_536;
/// Room for the groups of nearly every process, so that one system call is enough.
const USUAL_GROUPS: usize = 64;

/// The process that opened a connection to a Unix socket. Later changes of that process's user do not show here, and neither
/// does a descriptor that it passes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Its effective user, in this process's user namespace.
    pub uid: u32,
    /// Its supplementary groups, and last its effective group.
    pub groups: Vec<u32>,
}

impl PeerCredentials {
    /// Reads SO_PEERCRED and SO_PEERGROUPS (unix(7), socket(7)) of a connected Unix socket; a socket of another family has the user
    /// `u32::MAX`, which is no one's.
    ///
    /// # Errors
    /// What getsockopt(2) says, such as a want of memory.
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let socket = socket.as_fd();
        let (uid, gid) = user_and_group(socket)?;
        let mut groups = supplementary_groups(socket)?;
        groups.push(gid);
        Ok(Self { uid, groups })
    }
}

/// Not by rustix, whose type has no room for the process id 0 of a peer in a process namespace that is not visible from here.
fn user_and_group(socket: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    get_option(socket, libc::SO_PEERCRED, std::slice::from_mut(&mut credentials)).map_err(|(error, _)| error)?;
    Ok((credentials.uid, credentials.gid))
}

fn supplementary_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; USUAL_GROUPS];
    loop {
        match get_option(socket, libc::SO_PEERGROUPS, &mut groups) {
            Ok(count) => {
                groups.truncate(count);
                return Ok(groups);
            }
            Err((error, needed)) => {
                let too_short =
                    error.raw_os_error() == Some(libc::ERANGE) && (groups.len()..=MAX_GROUPS).contains(&needed);
                if !too_short {
                    return Err(error);
                }
                groups.resize(needed, 0);
            }
        }
    }
}

/// Fills `values` with a socket option, and tells how many the kernel wrote. The error comes with how many it has.
fn get_option<T: Copy>(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
    values: &mut [T],
) -> Result<usize, (io::Error, usize)> {
    let mut length = libc::socklen_t::try_from(size_of_val(values)).unwrap_or(libc::socklen_t::MAX);
    // SAFETY: `values` is writable for `length` bytes and outlives the call; the kernel writes at most that many bytes, of a type
    // for which all bit patterns are valid, and then stores in `length` how many it wrote or would need.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, values.as_mut_ptr().cast(), &raw mut length)
    };
    let error = io::Error::last_os_error();
    let count = usize::try_from(length).unwrap_or(0) / size_of::<T>();
    if result == 0 { Ok(count) } else { Err((error, count)) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_other_end_is_this_process_with_all_its_groups() {
        let (one, _other) = UnixStream::pair().unwrap();
        let credentials = PeerCredentials::of(&one).unwrap();
        assert_eq!(credentials.uid, rustix::process::geteuid().as_raw());
        let mut own: Vec<u32> =
            rustix::process::getgroups().unwrap().into_iter().map(rustix::process::Gid::as_raw).collect();
        own.push(rustix::process::getegid().as_raw());
        assert_eq!(credentials.groups, own);
    }

    #[test]
    fn a_buffer_that_is_too_short_is_told_how_many_groups_there_are() {
        let (one, _other) = UnixStream::pair().unwrap();
        let count = supplementary_groups(one.as_fd()).unwrap().len();
        match get_option::<u32>(one.as_fd(), libc::SO_PEERGROUPS, &mut []) {
            Ok(none) => assert_eq!((none, count), (0, 0)),
            Err((error, needed)) => assert_eq!((error.raw_os_error(), needed), (Some(libc::ERANGE), count)),
        }
    }
}
