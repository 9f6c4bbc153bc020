//! One open disk: its volumes, what it tells, and its end.

use super::*;
use crate::nvme::spec::padded_text;

impl Disk {
    pub(super) fn listen(&mut self, tell: &Tell) {
        let (address, hear) = (self.address, tell.clone());
        self.drive.listen(move |event| hear(address, DiskEvent::Told(event)));
        match Watched::start(self.port.device(), tell.clone()) {
            Ok(watched) => self.watched = Some(watched),
            Err(why) => tracing::warn!("{address}: whether it is unplugged is not heard: {why}"),
        }
    }

    pub(super) fn is(&self, which: &Which) -> bool {
        match which {
            Which::Pci(address) => self.address == *address,
            Which::Serial(serial) => self.drive.serial() == *serial,
        }
    }

    /// A volume on one of its namespaces.
    pub(super) fn volume(
        &mut self,
        pci: &Pci,
        name: &str,
        wanted: &Wanted,
    ) -> Result<Arc<dyn BlockDevice>, DeviceError> {
        let address = self.address;
        let others = || self.volumes.keys().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        if self.tuning != wanted.tuning {
            return Err(refused(format!("{address} is open with {} for {}: write the same", self.tuning, others())));
        }
        let all = self.drive.namespaces();
        let nsid = match wanted.nsid {
            Some(nsid) => nsid,
            None => only(address, all)?,
        };
        if let Some((other, _)) = self.volumes.iter().find(|(_, its)| **its == nsid) {
            return Err(refused(format!("namespace {nsid} of {address} is volume \"{other}\" already")));
        }
        let device = Nvme::new(name.to_owned(), &self.drive, nsid)?;
        let (size, block_size) = (device.common().size(), device.common().traits().block_size);
        check_size(wanted, (nsid, address), size, block_size)?;
        if let Some(claim) = kernel::claim_shared(pci, self.drive.identity(), nsid)
            .map_err(|why| refused(format!("namespace {nsid} of {address}: {why}")))?
        {
            self.claims.insert(name.to_owned(), claim);
        }
        self.volumes.insert(name.to_owned(), nsid);
        let in_buffer = match self.drive.in_buffer() {
            0 => String::new(),
            count => format!(", {count} of them with submissions in the controller memory buffer"),
        };
        tracing::info!(
            "volume \"{name}\": namespace {nsid} of {address} (serial {}, {}) by VFIO, {} queue pairs of depth {}{in_buffer}; mode = \
             \"kernel\" would need it back with the kernel's driver",
            self.drive.serial(),
            padded_text(&self.drive.identity().mn),
            self.drive.reactors().len(),
            self.port.depth(self.tuning.depth)
        );
        Ok(Arc::new(device))
    }

    /// Shuts the disk down, and cuts it off from memory whatever comes of that.
    pub(super) fn close(self) -> Result<(), DeviceError> {
        let Disk { address, port, home, drive, .. } = self;
        // It would answer nobody.
        let ended = home.has_ended();
        let (sender, closed) = mpsc::channel();
        home.send(Box::new(move |reactor| {
            let here = reactor.clone();
            reactor.spawn("nvme close", async move {
                let closed = drive.close(&here).await;
                drop(drive);
                // Who has waited long enough has said so.
                let _ = sender.send(closed);
            });
        }));
        let limit = port.closes_within();
        let closed = match closed.recv_timeout(if ended { Duration::ZERO } else { limit }) {
            Ok(closed) => closed.map_err(|error| error.to_string()),
            Err(_) if ended => Err("its reactor has ended before it was shut down".to_owned()),
            Err(error) => Err(unanswered(error, "shut down", limit)),
        };
        let cut_off = port.cut_off().map_err(|error| error.to_string());
        closed.and(cut_off).map_err(|error| refused(format!("{address}: {error}")))
    }
}
