//! What the file system says about the iSCSI door: secrets, which are read here, and the directory of reservations.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::{ChapSpans, GivenPath, IscsiSpans};
use crate::control::config::model::{Chap, IscsiConfig};
use crate::control::config::probe::reason;
use crate::control::config::reader::Messages;
use crate::iscsi::{BadChap, ChapConfig, Credentials, SECRET_MAX, SECRET_MIN, Secret};

/// Reads every secret into the configuration and looks at the directory of reservations.
pub(in crate::control::config) fn probe(config: &mut IscsiConfig, spans: &IscsiSpans, messages: &Messages) {
    check_state(&config.state, spans, messages);
    let targets = config.targets.iter_mut().map(|target| target.chap.as_mut()).zip(&spans.chap);
    for (chap, spans) in targets.chain([(config.discovery_chap.as_mut(), &spans.discovery_chap)]) {
        if let (Some(chap), Some(spans)) = (chap, spans) {
            chap.proof = prove(chap, spans, messages);
        }
    }
}

/// Both sides with their secrets; `None` after a message.
fn prove(chap: &Chap, spans: &ChapSpans, messages: &Messages) -> Option<ChapConfig> {
    let side = |user: &str, path: &Path, given: &GivenPath| {
        let secret = SecretFile { path, given, messages }.read()?;
        let refused = |bad: BadChap| messages.error(&given.span, bad.to_string(), "write another user");
        Credentials::new(user.to_owned(), secret).map_err(refused).ok()
    };
    // Both are read before the first refusal counts.
    let own = side(&chap.user, &chap.secret_file, &spans.secret_file);
    let mutual = chap.mutual.as_ref().zip(spans.mutual_secret_file.as_ref());
    let mutual = mutual.map(|(mutual, given)| side(&mutual.user, &mutual.secret_file, given));
    let mutual = match mutual {
        Some(mutual) => Some(mutual?),
        None => None,
    };
    let last = spans.mutual_secret_file.as_ref().unwrap_or(&spans.secret_file);
    let refused = |bad: BadChap| {
        let help = "keep another secret in mutual_secret_file: who knows one could answer for the other side";
        messages.error(&last.span, bad.to_string(), help);
    };
    let proof = ChapConfig::new(own?, mutual).map_err(refused).ok()?;
    Some(proof.only(chap.algorithms.clone()))
}

/// A file with a secret, and where its messages go. No message tells anything of what is in it but its form.
struct SecretFile<'a> {
    path: &'a Path,
    given: &'a GivenPath,
    messages: &'a Messages,
}

impl SecretFile<'_> {
    /// `None` after a message.
    fn refuse<T>(&self, what: impl AsRef<str>, help: impl Into<String>) -> Option<T> {
        self.messages.error(&self.given.span, format!("\"{}\" {}", self.given.text, what.as_ref()), help);
        None
    }

    /// `None` after a message.
    fn read(&self) -> Option<Secret> {
        // Looked at before it is opened, because to open a device or a pipe can have effects; and again once it is open, because
        // another file may have taken its place.
        self.check(&fs::metadata(self.path).map_err(|error| self.unreadable(&error)).ok()?)?;
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(self.path);
        let file = opened.map_err(|error| self.unreadable(&error)).ok()?;
        self.check(&file.metadata().map_err(|error| self.unreadable(&error)).ok()?)?;
        let bytes = self.bytes(file)?;
        let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        if line.len() > SECRET_MAX {
            return self.refuse(format!("has a secret of more than {SECRET_MAX} bytes"), self.make());
        }
        if line.iter().any(u8::is_ascii_control) {
            let help = "keep the secret in its first line, without control characters, and nothing after it";
            return self.refuse("has more than one line, or a control character", help);
        }
        match Secret::new(line.to_vec()) {
            Ok(secret) => Some(secret),
            Err(_) => {
                let what = format!("has a secret of less than {SECRET_MIN} bytes, the least there must be");
                self.refuse(what, self.make())
            }
        }
    }

    /// All of the file, as far as it can be a secret and the end of its line.
    fn bytes(&self, file: File) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(SECRET_MAX + 2);
        let read = file.take(SECRET_MAX as u64 + 2).read_to_end(&mut bytes);
        read.map_err(|error| self.unreadable(&error)).ok()?;
        Some(bytes)
    }

    fn unreadable(&self, error: &std::io::Error) {
        let what = match error.kind() {
            ErrorKind::NotFound => "does not exist".to_owned(),
            _ => format!("cannot be read: {}", reason(error)),
        };
        let help = match error.kind() {
            ErrorKind::NotFound => self.make(),
            _ => "write the path of a file that this user may read".to_owned(),
        };
        self.refuse::<()>(what, help);
    }

    /// Whether only its owner and root get at it, and whether that is us or root; `None` after a message.
    fn check(&self, metadata: &Metadata) -> Option<()> {
        let shown = self.path.display();
        if !metadata.is_file() {
            return self.refuse("is not a regular file", "write the path of a file with the secret in its first line");
        }
        let own = rustix::process::geteuid().as_raw();
        if metadata.uid() != own && metadata.uid() != 0 {
            let what = format!("belongs to user {}, neither to user {own} of this process nor to root", metadata.uid());
            return self.refuse(what, format!("chown {own} {shown}"));
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            let what = format!("has mode {mode:04o}: a secret is for its owner alone");
            return self.refuse(what, format!("chmod 600 {shown}"));
        }
        Some(())
    }

    /// How to make one.
    fn make(&self) -> String {
        let shown = self.path.display();
        format!("make one of 24 characters with: (umask 077; head -c 18 /dev/urandom | base64 > {shown})")
    }
}

/// The directory of reservations is one or can be made. Where it is not given, that it can be made matters only to who uses it.
fn check_state(state: &Path, spans: &IscsiSpans, messages: &Messages) {
    let (span, given) = match &spans.state {
        Some(given) => (&given.span, given.text.clone()),
        None => (&spans.table, state.display().to_string()),
    };
    let refuse = |message: String, help: String| messages.error(span, message, help);
    let needed = spans.state.is_some();
    let shown = state.display();
    let writable = |folder: &Path| accessat(CWD, folder, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
    match fs::metadata(state) {
        Ok(metadata) if !metadata.is_dir() => {
            refuse(format!("\"{given}\" is not a directory"), "write state = \"...\", another path".to_owned());
        }
        Ok(_) if needed => {
            if let Err(error) = writable(state) {
                let message = format!("reservations cannot be kept in \"{given}\": {}", reason(&error.into()));
                refuse(message, format!("write another path, or make {shown} writable for this user"));
            }
        }
        Err(error) if needed && error.kind() == ErrorKind::NotFound => {
            let folder = state.parent().unwrap_or(Path::new("/"));
            let folder_shown = folder.display();
            match writable(folder) {
                Ok(()) => {}
                Err(rustix::io::Errno::NOENT) => {
                    let message = format!("the directory of \"{given}\" does not exist");
                    refuse(message, format!("create it with: mkdir -p {folder_shown}"));
                }
                Err(error) => {
                    let message = format!("\"{given}\" cannot be created: {}", reason(&error.into()));
                    refuse(message, format!("write another path, or make {folder_shown} writable for this user"));
                }
            }
        }
        Err(error) if needed => {
            let message = format!("cannot look at \"{given}\": {}", reason(&error));
            refuse(message, "write a path whose directories exist and may be searched".to_owned());
        }
        Ok(_) | Err(_) => {}
    }
}
