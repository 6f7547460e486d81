//! What a connection to a peer proves and asks for, read from files for each new connection, so that
//! what was renewed is taken up.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use tokio_postgres_rustls::MakeRustlsConnect;

use super::{passfile, tls};
use crate::node::peer::{Access, Endpoint};

/// Nothing that is read here is near this size.
const LARGEST_FILE: u64 = 1 << 20;

const OTHERS: u32 = 0o007;
const GROUP: u32 = 0o070;
const GROUP_BUT_READ: u32 = 0o030;

/// For one connection.
pub struct Credentials {
    pub connector: MakeRustlsConnect,
    passwords: Passwords,
}

enum Passwords {
    Given(Vec<u8>),
    InFile(Vec<u8>),
    None,
}

impl Credentials {
    /// Reads the files. May wait for a disk, so it is not for the thread of the network.
    pub fn read(access: &Access) -> Result<Self, String> {
        Ok(Self {
            connector: tls::connector(&access.tls)?,
            passwords: passwords(access)?,
        })
    }

    /// The password to give at this place, if there is one.
    pub fn password(&self, access: &Access, endpoint: &Endpoint) -> Option<Vec<u8>> {
        match &self.passwords {
            Passwords::Given(password) => Some(password.clone()),
            Passwords::InFile(text) => passfile::look_up(text, access, endpoint),
            Passwords::None => None,
        }
    }

    /// Whether the password of this place was looked up in vain.
    pub fn lacks_password(&self, access: &Access, endpoint: &Endpoint) -> bool {
        matches!(self.passwords, Passwords::InFile(_)) && self.password(access, endpoint).is_none()
    }
}

fn passwords(access: &Access) -> Result<Passwords, String> {
    match (&access.password, &access.passfile) {
        (Some(password), _) => Ok(Passwords::Given(password.clone().into_bytes())),
        (None, Some(file)) => read_password_file(file).map(Passwords::InFile),
        (None, None) => Ok(Passwords::None),
    }
}

/// Reads a file that anybody may read.
pub fn read_public(option: &str, path: &Path) -> Result<Vec<u8>, String> {
    read(option, path, |_| Ok(()))
}

/// Reads a private key. As in libpq one of root's may be readable for a group, so that several
/// servers can share it.
pub fn read_key(path: &Path) -> Result<Vec<u8>, String> {
    read("sslkey", path, |found| {
        let (forbidden, expected) = match found.uid() {
            0 => (
                GROUP_BUT_READ | OTHERS,
                "0640 or less for a file owned by root",
            ),
            _ => (GROUP | OTHERS, "0600 or less"),
        };
        check_mode(found, forbidden, expected)
    })
}

fn read_password_file(path: &Path) -> Result<Vec<u8>, String> {
    read("passfile", path, |found| {
        check_mode(found, GROUP | OTHERS, "0600 or less")
    })
}

fn check_mode(found: &Metadata, forbidden: u32, expected: &str) -> io::Result<()> {
    if found.mode() & forbidden == 0 {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "it has group or world access, its mode must be {expected}"
        )))
    }
}

fn read(
    option: &str,
    path: &Path,
    check: impl Fn(&Metadata) -> io::Result<()>,
) -> Result<Vec<u8>, String> {
    read_checked(path, check).map_err(|failure| refused(option, path, &failure.to_string()))
}

/// The check is made on what was opened, not on what the name stood for a moment earlier.
fn read_checked(path: &Path, check: impl Fn(&Metadata) -> io::Result<()>) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a plain file"));
    }
    if found.len() > LARGEST_FILE {
        return Err(io::Error::other("it is larger than 1 MB"));
    }
    check(&found)?;
    let mut content = Vec::new();
    file.take(LARGEST_FILE).read_to_end(&mut content)?;
    Ok(content)
}

/// Without waiting for the other end, should the name be that of a pipe.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

/// Why a file named by an option is not taken.
pub fn refused(option: &str, path: &Path, reason: &str) -> String {
    format!(
        "could not use {option} file \"{}\": {reason}",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    /// A file of this test, gone when it ends.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str, mode: u32) -> Self {
            let path = std::env::temp_dir().join(format!("pg_test-{}-{name}", std::process::id()));
            std::fs::write(&path, "content").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_password_file_is_for_its_owner_alone() {
        for mode in [0o600, 0o400] {
            let file = Scratch::new(&format!("passfile-{mode:o}"), mode);
            assert_eq!(read_password_file(&file.0).unwrap(), b"content");
        }
        for mode in [0o640, 0o604, 0o620, 0o610, 0o644] {
            let file = Scratch::new(&format!("passfile-{mode:o}"), mode);
            let reason = read_password_file(&file.0).unwrap_err();
            assert!(
                reason.ends_with("it has group or world access, its mode must be 0600 or less"),
                "{reason}"
            );
        }
    }

    #[test]
    fn a_key_may_be_shared_by_root_only() {
        // SAFETY: a plain getter.
        let is_root = unsafe { libc::geteuid() } == 0;
        let shared = Scratch::new("key-shared", 0o640);
        assert_eq!(read_key(&shared.0).is_ok(), is_root);
        for mode in [0o644, 0o660, 0o650, 0o601] {
            let file = Scratch::new(&format!("key-{mode:o}"), mode);
            assert!(read_key(&file.0).is_err(), "{mode:o}");
        }
        let own = Scratch::new("key-own", 0o600);
        assert_eq!(read_key(&own.0).unwrap(), b"content");
    }

    #[test]
    fn what_cannot_be_read_says_which_option_it_is_of() {
        let reason = read_public("sslrootcert", Path::new("/nonexistent/ca")).unwrap_err();
        assert!(
            reason.starts_with("could not use sslrootcert file \"/nonexistent/ca\": No such file"),
            "{reason}"
        );
        let reason = read_public("sslcert", Path::new("/dev/null")).unwrap_err();
        assert!(reason.ends_with("it is not a plain file"), "{reason}");
        assert!(read_key(&std::env::temp_dir()).is_err());
    }
}
