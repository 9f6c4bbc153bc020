//! What the machine gives this process, as far as the configuration is checked against it.

use super::value::parse_core_list;
use crate::sys::affinity;

/// The cores of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Cores that are online, ascending.
    pub online: Vec<usize>,
    /// Those of them that the affinity of this process allows, ascending.
    pub allowed: Vec<usize>,
}

impl Machine {
    /// Asks the kernel. To be called once at start and kept for reloads: a thread that is pinned, or was started by one
    /// that is, sees only its own core.
    ///
    /// # Errors
    /// What sched_getaffinity(2) says.
    pub fn detect() -> std::io::Result<Self> {
        let allowed = affinity::allowed_cores()?;
        // A container may hide sysfs; what is allowed is then all that is known.
        let mut online = std::fs::read_to_string("/sys/devices/system/cpu/online")
            .ok()
            .and_then(|list| parse_core_list(list.trim()).ok())
            .unwrap_or_else(|| allowed.clone());
        online.sort_unstable();
        Ok(Self { online, allowed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_core_and_allows_one() {
        let machine = Machine::detect().unwrap();
        assert!(!machine.allowed.is_empty());
        assert!(machine.allowed.iter().all(|core| machine.online.contains(core)), "{machine:?}");
    }
}
