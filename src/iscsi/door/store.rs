//! Where persistent reservations with APTPL are kept.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

/// What is done when reservations are stored, or are not, with the reason.
pub type Stored = Box<dyn FnOnce(Result<(), String>) + Send>;

/// Keeps the reservations of logical units, by their serial numbers.
pub trait ReservationStore: Send + Sync {
    /// What is kept of a unit; on a control thread.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn load(&self, unit: &str) -> Result<Option<Vec<u8>>, String>;

    /// Keeps `bytes`, or nothing, durably, then says so from any thread. Does not block.
    fn store(&self, unit: String, bytes: Option<Vec<u8>>, done: Stored);
}

struct Job {
    unit: String,
    bytes: Option<Vec<u8>>,
    done: Stored,
}

/// Files in a directory, which is made when the first one is.
pub struct Directory {
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
}

impl Directory {
    /// Keeps them in `path`, written by a thread of its own.
    ///
    /// # Errors
    /// If there can be no such thread.
    pub fn new(path: &Path) -> io::Result<Directory> {
        let (jobs, incoming) = mpsc::channel::<Job>();
        let writer = path.to_owned();
        std::thread::Builder::new().name("reservations".to_owned()).spawn(move || {
            for job in incoming {
                (job.done)(write(&writer, &job.unit, job.bytes.as_deref()));
            }
        })?;
        Ok(Directory { path: path.to_owned(), jobs })
    }
}

fn file_of(directory: &Path, unit: &str) -> PathBuf {
    directory.join(format!("{unit}.reservations"))
}

/// Replaces or removes a file, so that after a loss of power it is either the old one or the new one.
fn write(directory: &Path, unit: &str, bytes: Option<&[u8]>) -> Result<(), String> {
    let path = file_of(directory, unit);
    let say = |what: &Path, why: io::Error| format!("{}: {why}", what.display());
    let sync = || fs::File::open(directory).and_then(|dir| dir.sync_all()).map_err(|why| say(directory, why));
    let Some(bytes) = bytes else {
        return match fs::remove_file(&path) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(why) => Err(say(&path, why)),
            Ok(()) => sync(),
        };
    };
    fs::create_dir_all(directory).map_err(|why| say(directory, why))?;
    let fresh = path.with_extension("new");
    let written = fs::File::create(&fresh).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&fresh, &path)).map_err(|why| say(&fresh, why))?;
    sync()
}

impl ReservationStore for Directory {
    fn load(&self, unit: &str) -> Result<Option<Vec<u8>>, String> {
        let path = file_of(&self.path, unit);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(format!("{}: {why}", path.display())),
        }
    }

    fn store(&self, unit: String, bytes: Option<Vec<u8>>, done: Stored) {
        if let Err(mpsc::SendError(job)) = self.jobs.send(Job { unit, bytes, done }) {
            (job.done)(Err("the thread that writes them has ended".to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_outlive_their_keeper_and_can_be_removed() {
        let dir = std::env::temp_dir().join(format!("reactor-reservations-{}", std::process::id()));
        let keep = |bytes: Option<&[u8]>| {
            let (sender, done) = mpsc::channel();
            let keeper = Directory::new(&dir).expect("a thread");
            keeper.store("ab".to_owned(), bytes.map(<[u8]>::to_vec), Box::new(move |r| sender.send(r).expect("us")));
            done.recv().expect("an answer")
        };
        let load = || Directory::new(&dir).expect("a thread").load("ab").expect("to be read");
        assert_eq!(load(), None);
        assert_eq!(keep(None), Ok(()), "nothing was there");
        assert_eq!(keep(Some(b"one")), Ok(()));
        assert_eq!(keep(Some(b"two")), Ok(()));
        assert_eq!(load().as_deref(), Some(&b"two"[..]));
        assert_eq!(keep(None), Ok(()));
        assert_eq!(load(), None);
        fs::remove_dir(&dir).expect("nothing else is left in it");
        fs::write(&dir, b"in the way").expect("a file");
        assert!(keep(Some(b"three")).is_err_and(|why| why.contains("reactor-reservations")));
        fs::remove_file(&dir).expect("our file");
    }
}
