//! Opening and growing the file, on a control thread.

use std::fs;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::memory::MemoryFile;
use super::{BOUNCE_LEN, Geometry, Options};
use crate::bdev::DeviceError;
use crate::sys::descriptor::Descriptor;
use crate::sys::file::{self, DirectAlign};

/// Page size of the page cache, and block size of nearly every file system: what fallocate zeroes without a detour.
const PAGE: u32 = 4096;

/// Where the kernel does not say what direct I/O asks for: enough for every device.
const CAUTIOUS: DirectAlign = DirectAlign { memory: 4096, offset: 4096 };

/// What a volume stands on.
#[derive(Debug)]
pub(super) enum Backing {
    /// A regular file.
    Regular(Arc<fs::File>, PathBuf),
    /// A file in memory.
    Memory(Arc<MemoryFile>, PathBuf),
    /// A block device.
    BlockDevice(Arc<fs::File>, PathBuf),
    /// Something that is open already.
    Open(Descriptor),
}

/// An opened file.
pub(super) struct Opened {
    pub(super) backing: Backing,
    pub(super) geometry: Geometry,
    pub(super) note: Option<String>,
}

/// Errors of one volume, all with its name.
struct Naming<'a>(&'a str);

impl Naming<'_> {
    fn refused(&self, reason: impl std::fmt::Display) -> DeviceError {
        DeviceError::Refused(format!("volume \"{}\": {reason}", self.0))
    }

    fn io(&self, what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> DeviceError {
        let what = format!("volume \"{}\": {what}", self.0);
        move |error| DeviceError::Io { what, error }
    }
}

pub(super) fn open(options: &Options) -> Result<Opened, DeviceError> {
    let (path, naming) = (&*options.path, Naming(&options.name));
    let shown = path.display();
    let file_type = match fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(options, &naming)?;
            fs::metadata(path).map_err(naming.io(format_args!("cannot look at {shown}")))?.file_type()
        }
        Err(error) => return Err(naming.io(format_args!("cannot look at {shown}"))(error)),
    };
    let device = file_type.is_block_device();
    if !device && !file_type.is_file() {
        return Err(naming.refused(format_args!("{shown} is neither a regular file nor a block device")));
    }
    let (mut file, mut note) = open_best(options, device, &naming)?;
    if !device && !file::lock(&file).map_err(naming.io(format_args!("cannot lock {shown}")))? {
        return Err(naming.refused(format_args!("{shown} is in use by another process, or by another volume")));
    }
    let found = file.seek(SeekFrom::End(0)).map_err(naming.io(format_args!("cannot find the size of {shown}")))?;
    if found != options.size {
        let hint = if device { "write that size" } else { "write that size; growth comes by a reload" };
        return Err(
            naming.refused(format_args!("{shown} has {found} bytes, the configuration says {}: {hint}", options.size))
        );
    }
    let sectors = match device {
        true => Some(file::sectors(&file).map_err(naming.io(format_args!("cannot find the sector size of {shown}")))?),
        false => None,
    };
    let in_memory = !device && file::is_in_memory(&file).map_err(naming.io(format_args!("cannot look at {shown}")))?;
    let mut align = None;
    if in_memory {
        note = None;
        file::stop_direct(&file).map_err(naming.io(format_args!("cannot use {shown} without O_DIRECT")))?;
    } else if options.direct && note.is_none() {
        match direct_align(&file, options.size) {
            Ok(found) => align = Some(found),
            Err(reason) => {
                note = Some(buffered_note(options, &reason));
                file::stop_direct(&file).map_err(naming.io(format_args!("cannot use {shown} without O_DIRECT")))?;
            }
        }
    }
    let logical = sectors.map_or(1, |s| s.logical);
    let unit = align.map_or(1, |a| a.offset);
    let geometry = Geometry {
        memory: align.map_or(1, |a| a.memory),
        unit,
        zeroes: match (device, align) {
            (true, _) => logical.max(unit),
            (false, Some(_)) => unit.max(PAGE),
            (false, None) => 1,
        },
        physical: sectors.map_or(1, |s| s.physical),
        allocation: if device { 1 } else { PAGE },
        direct: align.is_some(),
    };
    let path = path.to_owned();
    let backing = match (device, in_memory) {
        (true, _) => Backing::BlockDevice(file.into(), path),
        (false, true) => Backing::Memory(Arc::new(MemoryFile::new(file.into(), options.size)), path),
        (false, false) => Backing::Regular(file.into(), path),
    };
    Ok(Opened { backing, geometry, note })
}

/// Creates a sparse file, durably: its name too.
fn create(options: &Options, naming: &Naming<'_>) -> Result<(), DeviceError> {
    let path = &*options.path;
    let shown = path.display();
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        return Err(naming.refused(format_args!("the directory {} does not exist", parent.display())));
    }
    let file = match file::create(path) {
        Ok(file) => file,
        // Somebody else was quicker: what is there now is checked like any file.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(naming.io(format_args!("cannot create {shown}"))(error)),
    };
    let made = file.set_len(options.size).and_then(|()| file.sync_all()).and_then(|()| file::sync_directory_of(path));
    made.map_err(|error| {
        // Left behind, a file of another size would be in the way of the next attempt.
        let _ = fs::remove_file(path);
        naming.io(format_args!("cannot make {shown} {} bytes long", options.size))(error)
    })
}

/// Opens with O_DIRECT if that is asked for and the file system does not refuse.
fn open_best(options: &Options, device: bool, naming: &Naming<'_>) -> Result<(fs::File, Option<String>), DeviceError> {
    let path = &*options.path;
    let refused = |error: io::Error| match error.raw_os_error() {
        Some(libc::EBUSY) => {
            naming.refused(format_args!("{} is in use: mounted, or claimed by another program", path.display()))
        }
        _ => naming.io(format_args!("cannot open {} for reading and writing", path.display()))(error),
    };
    match file::open(path, options.direct, device) {
        Ok(file) => Ok((file, None)),
        Err(error) if options.direct && error.raw_os_error() == Some(libc::EINVAL) => {
            let file = file::open(path, false, device).map_err(refused)?;
            Ok((file, Some(buffered_note(options, "its file system has none"))))
        }
        Err(error) => Err(refused(error)),
    }
}

fn buffered_note(options: &Options, reason: &str) -> String {
    format!(
        "volume \"{}\": no direct I/O on {} ({reason}); the page cache is used, which is slower and costs memory",
        options.name,
        options.path.display()
    )
}

/// What direct I/O on this file asks for, or why there is none.
fn direct_align(file: &fs::File, size: u64) -> Result<DirectAlign, String> {
    let align = match file::direct_align(file) {
        Ok(Some(Some(align))) => align,
        Ok(Some(None)) => return Err("its file system has none".to_owned()),
        // A kernel before 6.1, or a file system that does not tell.
        Ok(None) | Err(_) => CAUTIOUS,
    };
    if !align.memory.is_power_of_two() || !align.offset.is_power_of_two() || align.offset as usize > BOUNCE_LEN {
        return Err(format!("it asks for an alignment of {} bytes", align.offset));
    }
    if !size.is_multiple_of(u64::from(align.offset)) {
        return Err(format!("the size is no multiple of its unit of {} bytes", align.offset));
    }
    file::try_direct_read(file, align).map_err(|error| format!("a first read failed: {error}"))?;
    Ok(align)
}

impl Backing {
    /// The file that can have holes which the kernel tells of.
    pub(super) fn sparse(&self) -> Option<&Arc<fs::File>> {
        match self {
            Backing::Regular(file, _) => Some(file),
            Backing::Memory(shared, _) => Some(&shared.file),
            Backing::BlockDevice(..) | Backing::Open(_) => None,
        }
    }

    /// Another descriptor of the same open file, for a reactor's ring.
    pub(super) fn descriptor(&self) -> io::Result<Descriptor> {
        let file = match self {
            Backing::Regular(file, _) | Backing::BlockDevice(file, _) => file,
            Backing::Memory(shared, _) => &shared.file,
            Backing::Open(descriptor) => return descriptor.try_clone(),
        };
        Ok(Descriptor::from(std::os::fd::OwnedFd::from(file.try_clone()?)))
    }

    /// Makes a file longer, durably, or finds that a block device has become larger.
    pub(super) fn grow(&self, name: &str, size: u64) -> Result<(), DeviceError> {
        let naming = Naming(name);
        let lengthen = |file: &fs::File, path: &Path| {
            let done = file.set_len(size).and_then(|()| file.sync_all());
            done.map_err(naming.io(format_args!("cannot make {} {size} bytes long", path.display())))
        };
        match self {
            Backing::Regular(file, path) => lengthen(file, path),
            Backing::Memory(shared, path) => lengthen(&shared.file, path),
            Backing::BlockDevice(file, path) => {
                let shown = path.display();
                // Channels use offsets of their own: the shared position is nobody's.
                let found = (&**file).seek(SeekFrom::End(0)).map_err(naming.io(format_args!("{shown}")))?;
                if found == size {
                    return Ok(());
                }
                Err(naming.refused(format_args!("{shown} has {found} bytes, the configuration says {size}")))
            }
            Backing::Open(_) => Err(naming.refused("its file was opened elsewhere and cannot grow")),
        }
    }
}
