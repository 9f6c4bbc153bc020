//! What the file system says about the paths of file volumes and of the iSCSI door. Nothing is created, and nothing but secrets is
//! opened.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::bdev::BdevSpans;
use super::iscsi;
use super::model::{BdevConfig, Config, Driver};
use super::parse::Parsed;
use super::reader::Messages;
use super::source::{Diagnostic, Span};
use super::value::format_size;

/// What stands at a path.
enum Found {
    Nothing,
    /// Bytes, and whether it is a block device.
    Size(u64, bool),
}

/// One file volume and where its messages go.
struct Probe<'a> {
    path: &'a Path,
    /// The path as the file has it.
    given: &'a str,
    path_span: &'a Span,
    size_span: &'a Span,
    messages: &'a Messages,
}

impl Parsed {
    /// Looks at the path of every file volume: it can be created with its size, or is there with that size. On a reload
    /// `running` is the configuration in service: a volume in it may be larger now, and one whose path changes is left
    /// to [`super::diff()`], which refuses that.
    ///
    /// The secrets of the iSCSI door are read into the configuration: before, it has none.
    pub fn probe(&mut self, running: Option<&Config>) -> Vec<Diagnostic> {
        let messages = Messages::default();
        let mut inodes = BTreeMap::new();
        for (bdev, spans) in self.config.bdevs.iter().zip(&self.spans) {
            let (Driver::File { path, .. }, Some(path_span)) = (&bdev.driver, &spans.path) else {
                continue;
            };
            let BdevSpans { size: size_span, path_text: given, .. } = spans;
            let probe = Probe { path, given, path_span, size_span, messages: &messages };
            let running = running.and_then(|running| running.bdev(&bdev.name));
            let stays = |running: &BdevConfig| matches!(&running.driver, Driver::File { path: old, .. } if old == path);
            if running.is_some_and(|running| !stays(running) || running.size > bdev.size) {
                continue;
            }
            let Some(found) = probe.look(&mut inodes, &bdev.name) else {
                continue;
            };
            match found {
                Found::Nothing => probe.check_creatable(),
                Found::Size(size, is_device) => probe.check_size(bdev, size, is_device, running),
            }
        }
        if let (Some(config), Some(spans)) = (&mut self.config.iscsi, &self.iscsi_spans) {
            iscsi::probe(config, spans, &messages);
        }
        messages.into_sorted()
    }
}

impl Probe<'_> {
    fn path_error(&self, message: impl Into<String>, help: impl Into<String>) {
        self.messages.error(self.path_span, message, help);
    }

    /// `None` after a message.
    fn look(&self, inodes: &mut BTreeMap<(u64, u64), String>, name: &str) -> Option<Found> {
        let given = self.given;
        let metadata = match fs::metadata(self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let target = fs::read_link(self.path).ok();
                return if let Some(target) = target {
                    let message = format!("\"{given}\" is a link to \"{}\", which does not exist", target.display());
                    self.path_error(message, "write the path of the file itself");
                    None
                } else {
                    Some(Found::Nothing)
                };
            }
            Err(error) => {
                let message = format!("cannot look at \"{given}\": {}", reason(&error));
                self.path_error(message, "write a path whose directories exist and may be searched");
                return None;
            }
        };
        let kind = metadata.file_type();
        let wrong = if kind.is_dir() {
            "a directory"
        } else if kind.is_char_device() {
            "a character device"
        } else if kind.is_fifo() {
            "a pipe"
        } else if kind.is_socket() {
            "a socket"
        } else {
            ""
        };
        if !wrong.is_empty() {
            let help = if kind.is_dir() {
                format!("write the path of a file in it, such as \"{}\"", Path::new(given).join("disk0.img").display())
            } else {
                "write the path of a regular file or of a block device".to_owned()
            };
            self.path_error(format!("\"{given}\" is {wrong}"), help);
            return None;
        }
        let identity =
            if kind.is_block_device() { (u64::MAX, metadata.rdev()) } else { (metadata.dev(), metadata.ino()) };
        if let Some(other) = inodes.insert(identity, name.to_owned()) {
            let message = format!("\"{given}\" is the file that bdev \"{other}\" stands on");
            self.path_error(message, "write another path, or export that volume again");
            return None;
        }
        if kind.is_block_device() { self.device_size(&metadata) } else { Some(Found::Size(metadata.len(), false)) }
    }

    /// From sysfs, so that the device is not opened.
    fn device_size(&self, metadata: &Metadata) -> Option<Found> {
        let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
        let sectors = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/size"));
        let size = sectors.ok().and_then(|text| text.trim().parse::<u64>().ok()).map(|sectors| sectors * 512);
        if size.is_none() {
            let message =
                format!("\"{}\" is block device {major}:{minor}, which this machine does not have", self.given);
            self.path_error(message, "write the path of a device that lsblk shows");
        }
        size.map(|size| Found::Size(size, true))
    }

    fn check_size(&self, bdev: &BdevConfig, found: u64, is_device: bool, running: Option<&BdevConfig>) {
        // Growth by reload extends a file; a device has to be as large already.
        if found == bdev.size
            || (!is_device && running.is_some_and(|running| (running.size..=bdev.size).contains(&found)))
        {
            return;
        }
        let given = self.given;
        let message = format!("\"{given}\" has {}, not {}", format_size(found), format_size(bdev.size));
        let help = if found == 0 && is_device {
            "write the path of a device that has a size, as lsblk shows it".to_owned()
        } else if found == 0 {
            "remove the empty file; it is created with its size".to_owned()
        } else if !found.is_multiple_of(u64::from(bdev.block_size)) {
            "write another path: the size of what is there is no multiple of block_size".to_owned()
        } else if is_device || found > bdev.size {
            format!("write size = \"{}\"", format_size(found))
        } else {
            let (present, wanted) = (format_size(found), bdev.size);
            format!("write size = \"{present}\", or extend it with: truncate -s {wanted} {}", self.path.display())
        };
        self.messages.error(self.size_span, message, help);
    }

    fn check_creatable(&self) {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let shown = folder.display();
        match accessat(CWD, folder, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT) => {
                let message = format!("the directory of \"{}\" does not exist", self.given);
                self.path_error(message, format!("create it with: mkdir -p {shown}"));
            }
            Err(error) => {
                let message = format!("\"{}\" cannot be created: {}", self.given, reason(&error.into()));
                self.path_error(message, format!("write another path, or make {shown} writable for this user"));
            }
        }
    }
}

/// The words of an error, without its number.
pub(super) fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
