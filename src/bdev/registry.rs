//! The devices of a process by name: who uses them, and how they come, grow and go.
//!
//! For control threads only: it takes locks, calls devices that may block, and waits for reactors, which it reaches by messages.
//!
//! ```text
//!   add --> open stack --> claims: doors share it, or one layer above has it alone
//!            |   ^
//!   resize --+   +-- close: new I/O gets Gone, what is in flight ends, holders are told
//!            v
//!   remove: no claim is left --> closed --> every reactor drops its channel --> the device goes
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::{Arc, PoisonError, Weak, mpsc};
use std::time::Duration;

use super::contract::{BlockDevice, DeviceError};
use super::handle::Handle;
use crate::limits::STACK_LAYERS_MAX;
use crate::reactor::Reactor;
use crate::reactor::mailbox::Remote;

#[expect(clippy::disallowed_types, reason = "taken by control threads alone; a reactor never sees the registry")]
type Mutex<T> = std::sync::Mutex<T>;

/// Longest name of a device, in bytes.
pub const NAME_LEN_MAX: usize = 63;

/// Whether a device may have that name: it stands in paths, commands, logs and metrics.
pub fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(fits)
}

/// How a device is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Read and written together with others who know that they share it: several doors on one volume.
    Shared,
    /// Read, and relied on not to change: others may do the same, nobody may write.
    ReadOnly,
    /// By one layer above it and nobody else.
    Exclusive,
}

/// Why the registry refused.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A name that would not stand in a path or a command.
    #[error(
        "\"{0}\" cannot be the name of a volume: letters, digits, \".\", \"_\" and \"-\", at most {NAME_LEN_MAX} of them"
    )]
    Name(String),
    /// There is a device of that name.
    #[error("there is a volume \"{0}\" already")]
    Exists(String),
    /// There is no device of that name.
    #[error("there is no volume \"{0}\"")]
    Unknown(String),
    /// Others use it in a way that does not go with what was asked.
    #[error("volume \"{name}\" is in use: {}", list(holders))]
    Held {
        /// The device.
        name: String,
        /// Who holds it, and how.
        holders: Vec<(String, Mode)>,
    },
    /// It was closed.
    #[error("volume \"{0}\" is being removed")]
    Closing(String),
    /// Too many layers.
    #[error(
        "volume \"{name}\" would be {layers} layers above its lowest device; at most {STACK_LAYERS_MAX} are possible"
    )]
    TooDeep {
        /// The device.
        name: String,
        /// Layers of its stack, itself included.
        layers: usize,
    },
    /// Its home is no reactor of this process.
    #[error("volume \"{name}\" has its home on reactor {home}, and there are {reactors}")]
    Home {
        /// The device.
        name: String,
        /// The home it names.
        home: u16,
        /// Reactors of the process.
        reactors: usize,
    },
    /// Reactors on which somebody still has it open, or I/O did not end; it stays closed, and removal may be tried again.
    #[error("volume \"{name}\" is closed, but still in use on reactors {reactors:?}")]
    StillOpen {
        /// The device.
        name: String,
        /// The reactors.
        reactors: Vec<u16>,
    },
    /// The device's own answer.
    #[error("{0}")]
    Device(#[from] DeviceError),
}

fn list(holders: &[(String, Mode)]) -> String {
    let names: Vec<String> = holders.iter().map(|(who, mode)| format!("{who} ({mode})")).collect();
    names.join(", ")
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Shared => "shared",
            Mode::ReadOnly => "read-only",
            Mode::Exclusive => "exclusive",
        })
    }
}

/// What happened to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is there.
    Added(String),
    /// It has become this many bytes large; I/O up to the new end works already.
    Resized(String, u64),
    /// It takes no more I/O: who holds it lets go of it.
    Closing(String),
    /// It is gone.
    Removed(String),
}

/// What the registry knows of a device.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Its name.
    pub name: String,
    /// Its driver.
    pub driver: &'static str,
    /// Its size in bytes.
    pub size: u64,
    /// Layers above its lowest device: 0 for a leaf.
    pub layers: usize,
    /// The devices below it.
    pub bases: Vec<String>,
    /// It was closed.
    pub closing: bool,
    /// Who uses it, and how.
    pub holders: Vec<(String, Mode)>,
}

type Callback = Arc<dyn Fn(&Event) + Send + Sync>;

struct Entry {
    device: Arc<dyn BlockDevice>,
    layers: usize,
    /// Its claims on the devices below, given back when it goes.
    bases: Vec<Claim>,
    claims: Vec<Held>,
}

struct Held {
    number: u64,
    mode: Mode,
    holder: String,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<String, Entry>,
    listeners: Vec<(u64, Callback)>,
    numbers: u64,
}

struct Inner {
    reactors: Vec<Remote>,
    state: Mutex<State>,
    /// One change at a time: adding, resizing, closing, removing. Taken before `state`, which is never held while a device or a
    /// reactor is waited for.
    change: Mutex<()>,
}

/// See the module's head. Clones are the same registry.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

/// The right to use a device; dropped means given back.
pub struct Claim {
    registry: Weak<Inner>,
    device: Arc<dyn BlockDevice>,
    name: String,
    number: u64,
}

/// Told of events until dropped.
#[must_use = "dropped at once, it hears nothing"]
pub struct Listener {
    registry: Weak<Inner>,
    number: u64,
}

impl Claim {
    /// The device.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claim({:?})", self.name)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(inner) = self.registry.upgrade()
            && let Some(entry) = lock(&inner.state).entries.get_mut(&self.name)
        {
            entry.claims.retain(|held| held.number != self.number);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(inner) = self.registry.upgrade() {
            lock(&inner.state).listeners.retain(|(number, _)| *number != self.number);
        }
    }
}

/// A panic of another control thread leaves the state whole: every change of it is a single step.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn entry(&mut self, name: &str) -> Result<&mut Entry, RegistryError> {
        self.entries.get_mut(name).ok_or_else(|| RegistryError::Unknown(name.to_owned()))
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

impl Entry {
    fn holders(&self) -> Vec<(String, Mode)> {
        self.claims.iter().map(|held| (held.holder.clone(), held.mode)).collect()
    }

    fn held(&self, name: &str) -> RegistryError {
        RegistryError::Held { name: name.to_owned(), holders: self.holders() }
    }
}

impl Registry {
    /// An empty registry for the devices of these reactors.
    pub fn new(reactors: Vec<Remote>) -> Registry {
        Registry(Arc::new(Inner { reactors, state: Mutex::default(), change: Mutex::default() }))
    }

    /// Adds a device that was made on `bases`, which it holds as long as it is there.
    ///
    /// # Errors
    /// If its name is taken or cannot be one, its stack too deep, or its home does not exist.
    pub fn add(&self, device: Arc<dyn BlockDevice>, bases: Vec<Claim>) -> Result<(), RegistryError> {
        let _one = lock(&self.0.change);
        let name = device.common().traits().name.clone();
        let (home, reactors) = (device.common().home(), self.0.reactors.len());
        if !is_name(&name) {
            return Err(RegistryError::Name(name));
        }
        if usize::from(home) >= reactors {
            return Err(RegistryError::Home { name, home, reactors });
        }
        {
            let mut state = lock(&self.0.state);
            if state.entries.contains_key(&name) {
                return Err(RegistryError::Exists(name));
            }
            let mut layers = 0;
            for base in &bases {
                layers = layers.max(state.entry(&base.name)?.layers + 1);
            }
            if layers > STACK_LAYERS_MAX {
                return Err(RegistryError::TooDeep { name, layers });
            }
            state.entries.insert(name.clone(), Entry { device, layers, bases, claims: Vec::new() });
        }
        self.tell(&Event::Added(name));
        Ok(())
    }

    /// The device of that name, to look at; to use it, claim it.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, name: &str) -> Result<Arc<dyn BlockDevice>, RegistryError> {
        Ok(lock(&self.0.state).entry(name)?.device.clone())
    }

    /// Takes a device into use by `holder`, which is what errors call it.
    ///
    /// # Errors
    /// If others use it in a way that does not go with `mode`, naming them; if it is not there or going.
    pub fn claim(&self, name: &str, mode: Mode, holder: &str) -> Result<Claim, RegistryError> {
        let mut state = lock(&self.0.state);
        let number = state.number();
        let entry = state.entry(name)?;
        if entry.device.common().is_closing() {
            return Err(RegistryError::Closing(name.to_owned()));
        }
        if !entry.claims.iter().all(|held| held.mode == mode && mode != Mode::Exclusive) {
            return Err(entry.held(name));
        }
        entry.claims.push(Held { number, mode, holder: holder.to_owned() });
        let device = entry.device.clone();
        Ok(Claim { registry: Arc::downgrade(&self.0), device, name: name.to_owned(), number })
    }

    /// All devices, by name.
    pub fn devices(&self) -> Vec<Arc<dyn BlockDevice>> {
        lock(&self.0.state).entries.values().map(|entry| entry.device.clone()).collect()
    }

    /// What is known of all devices, by name.
    pub fn list(&self) -> Vec<Listing> {
        let state = lock(&self.0.state);
        let listing = |(name, entry): (&String, &Entry)| {
            let common = entry.device.common();
            Listing {
                name: name.clone(),
                driver: common.traits().driver,
                size: common.size(),
                layers: entry.layers,
                bases: entry.bases.iter().map(|base| base.name.clone()).collect(),
                closing: common.is_closing(),
                holders: entry.holders(),
            }
        };
        state.entries.iter().map(listing).collect()
    }

    /// Calls `callback` for every event from now on, on the thread that caused it. It may claim and let go of devices, and nothing
    /// else of the registry.
    pub fn listen(&self, callback: impl Fn(&Event) + Send + Sync + 'static) -> Listener {
        let mut state = lock(&self.0.state);
        let number = state.number();
        state.listeners.push((number, Arc::new(callback)));
        Listener { registry: Arc::downgrade(&self.0), number }
    }

    fn tell(&self, event: &Event) {
        let listeners: Vec<Callback> = lock(&self.0.state).listeners.iter().map(|(_, f)| f.clone()).collect();
        listeners.iter().for_each(|listener| listener(event));
    }

    /// Makes a device `size` bytes large while it is in use. Returns the size it has now, which may be rounded up.
    ///
    /// # Errors
    /// What the device says; a base of a layer grows through that layer.
    pub fn resize(&self, name: &str, size: u64) -> Result<u64, RegistryError> {
        let _one = lock(&self.0.change);
        let device = {
            let mut state = lock(&self.0.state);
            let entry = state.entry(name)?;
            if entry.device.common().is_closing() {
                return Err(RegistryError::Closing(name.to_owned()));
            }
            if entry.claims.iter().any(|held| held.mode == Mode::Exclusive) {
                return Err(entry.held(name));
            }
            entry.device.clone()
        };
        device.grow(size)?;
        let size = device.common().size();
        self.tell(&Event::Resized(name.to_owned(), size));
        Ok(size)
    }

    /// Takes a device out of service at once, whoever uses it: new I/O gets
    /// [`Gone`](crate::reactor::io::IoStatus::Gone), what is in flight is ended, and listeners are told to let go of it. It
    /// stays known until it is removed.
    ///
    /// Waits up to `limit` for each reactor.
    ///
    /// # Errors
    /// If I/O on some reactors does not end.
    pub fn close(&self, name: &str, limit: Duration) -> Result<(), RegistryError> {
        let _one = lock(&self.0.change);
        let device = self.get(name)?;
        if !device.common().is_closing() {
            device.common().close();
            self.tell(&Event::Closing(name.to_owned()));
        }
        let id = device.common().id();
        self.everywhere(name, limit, move |reactor| async move { Handle::drain(&reactor, id).await })
    }

    /// Removes a device that nobody claims: closes it, waits until every reactor has ended its I/O and dropped its channel, and lets
    /// go of the devices below.
    ///
    /// Waits up to `limit` for each reactor.
    ///
    /// # Errors
    /// If it is claimed, naming the holders; then nothing has changed. If it is still open on reactors after `limit`: then it stays
    /// closed and known.
    pub fn remove(&self, name: &str, limit: Duration) -> Result<(), RegistryError> {
        let _one = lock(&self.0.change);
        let (device, first) = {
            let mut state = lock(&self.0.state);
            let entry = state.entry(name)?;
            if !entry.claims.is_empty() {
                return Err(entry.held(name));
            }
            // Under the lock: no claim comes between the look and the closing.
            let first = !entry.device.common().is_closing();
            entry.device.common().close();
            (entry.device.clone(), first)
        };
        if first {
            self.tell(&Event::Closing(name.to_owned()));
        }
        let id = device.common().id();
        self.everywhere(name, limit, move |reactor| async move { Handle::forget(&reactor, id).await })?;
        let removed = lock(&self.0.state).entries.remove(name);
        // Dropped while nothing is locked: its claims on its bases go with it.
        drop(removed);
        self.tell(&Event::Removed(name.to_owned()));
        Ok(())
    }

    /// Runs a task on every reactor and waits for its end. A reactor that has ended has no channels any more.
    fn everywhere<F>(
        &self,
        name: &str,
        limit: Duration,
        task: impl Fn(Rc<Reactor>) -> F + Clone + Send + 'static,
    ) -> Result<(), RegistryError>
    where
        F: Future<Output = ()> + 'static,
    {
        let (done, ends) = mpsc::channel();
        for remote in &self.0.reactors {
            let (done, task) = (done.clone(), task.clone());
            remote.send(Box::new(move |reactor| {
                let here = reactor.clone();
                reactor.spawn("a volume goes", async move {
                    let id = here.id();
                    task(here).await;
                    // Nobody listens any more once the limit is over.
                    let _ = done.send(id);
                });
            }));
        }
        drop(done);
        let mut missing: Vec<u16> = self.0.reactors.iter().map(Remote::id).collect();
        loop {
            match ends.recv_timeout(limit) {
                Ok(id) => missing.retain(|reactor| *reactor != id),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(RegistryError::StillOpen { name: name.to_owned(), reactors: missing });
                }
            }
        }
    }
}

/// Why devices cannot be stacked as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StackError {
    /// Two devices of one name.
    #[error("there are two volumes \"{0}\"")]
    Twice(String),
    /// A base that is not there.
    #[error("volume \"{name}\" is on \"{base}\", which does not exist")]
    Unknown {
        /// The device.
        name: String,
        /// What it asks for.
        base: String,
    },
    /// A device that is, in the end, on itself.
    #[error("volumes are stacked in a circle: {}", .0.join(" is on "))]
    Cycle(Vec<String>),
    /// Too many layers.
    #[error(
        "volume \"{name}\" would be {layers} layers above its lowest device; at most {STACK_LAYERS_MAX} are possible"
    )]
    TooDeep {
        /// The device.
        name: String,
        /// Layers of its stack, itself included.
        layers: usize,
    },
}

/// The order in which devices can be made, bases first: indices into `devices`, which are names and the names of their bases.
///
/// # Errors
/// If there is no such order, or a stack is too deep.
pub fn order(devices: &[(&str, &[&str])]) -> Result<Vec<usize>, StackError> {
    let mut by_name = BTreeMap::new();
    for (index, (name, _)) in devices.iter().enumerate() {
        if by_name.insert(*name, index).is_some() {
            return Err(StackError::Twice((*name).to_owned()));
        }
    }
    let mut search =
        Search { devices, by_name, layers: vec![None; devices.len()], path: Vec::new(), order: Vec::new() };
    for index in 0..devices.len() {
        search.visit(index)?;
    }
    Ok(search.order)
}

struct Search<'a> {
    devices: &'a [(&'a str, &'a [&'a str])],
    by_name: BTreeMap<&'a str, usize>,
    /// Of those that are in the order.
    layers: Vec<Option<usize>>,
    /// From the device that was asked for down to the one being looked at.
    path: Vec<usize>,
    order: Vec<usize>,
}

impl Search<'_> {
    fn visit(&mut self, index: usize) -> Result<usize, StackError> {
        if let Some(layers) = self.layers[index] {
            return Ok(layers);
        }
        let (name, bases) = self.devices[index];
        if let Some(from) = self.path.iter().position(|&above| above == index) {
            let circle = self.path[from..].iter().chain([&index]);
            return Err(StackError::Cycle(circle.map(|&i| self.devices[i].0.to_owned()).collect()));
        }
        self.path.push(index);
        let mut layers = 0;
        for base in bases {
            let Some(&below) = self.by_name.get(base) else {
                return Err(StackError::Unknown { name: name.to_owned(), base: (*base).to_owned() });
            };
            layers = layers.max(self.visit(below)? + 1);
        }
        if layers > STACK_LAYERS_MAX {
            return Err(StackError::TooDeep { name: name.to_owned(), layers });
        }
        self.path.pop();
        self.layers[index] = Some(layers);
        self.order.push(index);
        Ok(layers)
    }
}

#[cfg(test)]
mod tests;
