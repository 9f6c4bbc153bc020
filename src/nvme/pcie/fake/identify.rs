//! Identify (Base §5.17, NVM §4.1.5).

use zerocopy::{FromZeros, IntoBytes};

use super::Inner;
use super::admin::Outcome;
use super::disk::Namespace;
use super::log::ERRORS_MAX;
use super::memory::Dma;
use super::queue::{Flight, Sq};
use crate::nvme::spec::{
    CMIC_CONTROLLERS, Cns, ControllerType, Csi, DescriptorHeader, DescriptorType, FUSES_COMPARE_AND_WRITE,
    IDENTIFY_LEN, IdentifyController, IdentifyControllerNvm, IdentifyControllerZoned, IdentifyFields,
    IdentifyNamespace, IdentifyNamespaceNvm, IdentifyNamespaceZoned, LPA_COMMANDS_EFFECTS, LPA_EXTENDED_DATA,
    NMIC_SHARED, NSATTR_WRITE_PROTECTED, NSFEAT_NSABP, NSFEAT_OPTPERF, NSID_BROADCAST, OACS_DOORBELL_BUFFER_CONFIG,
    OACS_FORMAT, OAES_FIRMWARE_ACTIVATION, OAES_NAMESPACE_ATTRIBUTE, OZCS_READ_ACROSS, Sqe, Status, StatusCode,
    VERSION_2_0, VWC_PRESENT, put_text,
};

/// Firmware revision.
pub(super) const FIRMWARE: &str = "1.0";
/// Model number.
const MODEL: &str = "NVMe controller in software";
/// VWC bits 2:1 = 11b: Flush takes the broadcast NSID.
const VWC_FLUSH_BROADCAST: u8 = 3 << 1;
/// Largest valid namespace identifier that there is always room for.
const NAMESPACES_MIN: u32 = 16;

impl Inner {
    /// NN: the largest valid namespace identifier.
    pub(super) fn namespaces_max(&self) -> u32 {
        let largest = self.disk.namespaces().last().map_or(0, |namespace| namespace.options.nsid);
        largest.max(NAMESPACES_MIN)
    }

    pub(super) fn identify(&self, sq: &mut Sq, dma: &Dma<'_>, flight: &Flight) -> Outcome {
        let page = self.identify_page(&flight.sqe)?;
        self.send(sq, dma, flight, page)?;
        Ok(0)
    }

    fn identify_page(&self, sqe: &Sqe) -> Result<Vec<u8>, Status> {
        let fields = IdentifyFields::of(sqe);
        let nsid = sqe.nsid.get();
        let zeros = || vec![0; IDENTIFY_LEN];
        let zoned = match fields.csi {
            Csi::NVM => false,
            Csi::ZONED if self.disk.is_zoned() => true,
            _ if matches!(fields.cns, Cns::NAMESPACE_CSI | Cns::CONTROLLER_CSI | Cns::ACTIVE_NAMESPACES_CSI) => {
                return Err(StatusCode::INVALID_FIELD.dnr());
            }
            _ => false,
        };
        match fields.cns {
            Cns::NAMESPACE => self.of_namespace(nsid, |namespace| self.namespace_page(namespace)),
            Cns::CONTROLLER => Ok(self.controller_page()),
            Cns::ACTIVE_NAMESPACES => self.list(nsid, |_| true),
            Cns::NAMESPACE_DESCRIPTORS => {
                let page = self.of_namespace(nsid, |namespace| self.descriptors(namespace))?;
                // There is nothing to tell of an inactive namespace (Base §5.17.2.3).
                if page == zeros() { Err(StatusCode::INVALID_NAMESPACE.dnr()) } else { Ok(page) }
            }
            Cns::NAMESPACE_CSI if zoned => self.of_zoned_namespace(nsid),
            Cns::NAMESPACE_CSI => self.of_namespace(nsid, |_| IdentifyNamespaceNvm::new_zeroed().as_bytes().to_vec()),
            Cns::CONTROLLER_CSI if zoned => {
                let mut page = IdentifyControllerZoned::new_zeroed();
                page.zasl = self.disk.options().zasl;
                Ok(page.as_bytes().to_vec())
            }
            Cns::CONTROLLER_CSI => {
                let options = self.disk.options();
                let mut page = IdentifyControllerNvm::new_zeroed();
                (page.vsl, page.wzsl, page.dmrl) =
                    (options.verify_limit, options.write_zeroes_limit, options.ranges_max);
                page.dmrsl.set(options.range_blocks_max);
                page.dmsl.set(options.ranges_blocks_max);
                Ok(page.as_bytes().to_vec())
            }
            Cns::ACTIVE_NAMESPACES_CSI => self.list(nsid, |namespace| namespace.options.zones.is_some() == zoned),
            Cns::COMMAND_SETS if self.options.command_sets => {
                let mut page = zeros();
                // One combination: the NVM command set, and that of zones where there are any.
                page[0] = 1 << Csi::NVM.0 | u8::from(self.disk.is_zoned()) << Csi::ZONED.0;
                Ok(page)
            }
            _ => Err(StatusCode::INVALID_FIELD.dnr()),
        }
    }

    /// A page about an active namespace; zeros about an inactive one (Base §5.17.2.1).
    fn of_namespace(&self, nsid: u32, page: impl Fn(&Namespace) -> Vec<u8>) -> Result<Vec<u8>, Status> {
        if nsid == 0 || nsid == NSID_BROADCAST || nsid > self.namespaces_max() {
            return Err(StatusCode::INVALID_NAMESPACE.dnr());
        }
        let namespace = self.namespaces.lock().get(&nsid).cloned();
        Ok(namespace.map_or_else(|| vec![0; IDENTIFY_LEN], |namespace| page(&namespace)))
    }

    fn of_zoned_namespace(&self, nsid: u32) -> Result<Vec<u8>, Status> {
        let page = self.of_namespace(nsid, |namespace| {
            let Some(zones) = &namespace.options.zones else { return Vec::new() };
            let mut page = IdentifyNamespaceZoned::new_zeroed();
            page.ozcs.set(if zones.read_across { OZCS_READ_ACROSS } else { 0 });
            let zeros_based = |most: Option<u32>| most.map_or(u32::MAX, |most| most - 1);
            page.mar_z.set(zeros_based(zones.active_max));
            page.mor_z.set(zeros_based(zones.open_max));
            for (index, place) in page.lbafe.iter_mut().enumerate().take(namespace.options.formats.len()) {
                place.zsze.set(namespace.options.zones_of(index).map_or(0, |zones| zones.blocks));
            }
            page.as_bytes().to_vec()
        })?;
        // Of another command set (Base §5.17.2.5).
        if page.is_empty() { Err(StatusCode::INVALID_FIELD.dnr()) } else { Ok(page) }
    }

    fn list(&self, after: u32, is_listed: impl Fn(&Namespace) -> bool) -> Result<Vec<u8>, Status> {
        if after >= NSID_BROADCAST - 1 {
            return Err(StatusCode::INVALID_NAMESPACE.dnr());
        }
        let mut page = vec![0; IDENTIFY_LEN];
        let namespaces = self.namespaces.lock();
        let listed = namespaces.range(after + 1..).filter(|(_, namespace)| is_listed(namespace));
        for (place, (nsid, _)) in page.chunks_exact_mut(4).zip(listed) {
            place.copy_from_slice(&nsid.to_le_bytes());
        }
        Ok(page)
    }

    fn controller_page(&self) -> Vec<u8> {
        let options = self.disk.options();
        let mut page = IdentifyController::new_zeroed();
        page.vid.set(0x1b36);
        page.ssvid.set(0x1af4);
        put_text(&mut page.sn, &options.serial, b' ');
        put_text(&mut page.mn, MODEL, b' ');
        put_text(&mut page.fr, FIRMWARE, b' ');
        page.rab = 6;
        page.cmic = CMIC_CONTROLLERS;
        page.mdts = options.mdts;
        page.cntlid.set(self.id);
        page.ver.set(VERSION_2_0);
        page.rtd3e_us.set((self.options.shutdown_ns / 1000).max(1_000_000) as u32);
        page.oaes.set(OAES_NAMESPACE_ATTRIBUTE | OAES_FIRMWARE_ACTIVATION);
        page.cntrltype = ControllerType::IO;
        let shadows = if self.options.shadow_doorbells { OACS_DOORBELL_BUFFER_CONFIG } else { 0 };
        page.oacs.set(OACS_FORMAT | shadows);
        (page.acl_z, page.aerl_z) = (self.options.acl_z, self.options.aerl_z);
        // One slot, which is read-only.
        page.frmw = 1 << 1 | 1;
        page.lpa = LPA_COMMANDS_EFFECTS | LPA_EXTENDED_DATA;
        page.elpe_z = ERRORS_MAX as u8 - 1;
        page.wctemp_k.set(343);
        page.cctemp_k.set(373);
        page.sqes = 6 << 4 | 6;
        page.cqes = 4 << 4 | 4;
        page.nn.set(self.namespaces_max());
        page.oncs.set(options.oncs);
        page.fuses.set(if options.fused { FUSES_COMPARE_AND_WRITE } else { 0 });
        page.vwc = VWC_FLUSH_BROADCAST | if options.write_cache { VWC_PRESENT } else { 0 };
        page.acwu_z.set(options.acwu_z);
        page.sgls.set(options.sgls);
        page.crdt_100ms = options.crdt_100ms.map(Into::into);
        put_text(&mut page.subnqn, &format!("nqn.2019-08.org.example:{}", options.serial), 0);
        page.psd[0].mp.set(2500);
        page.as_bytes().to_vec()
    }

    fn namespace_page(&self, namespace: &Namespace) -> Vec<u8> {
        let state = namespace.state.lock();
        let options = &namespace.options;
        let mut page = IdentifyNamespace::new_zeroed();
        page.nsze.set(state.blocks);
        page.ncap.set(state.blocks);
        page.nuse.set(state.blocks);
        page.nlbaf_z = options.formats.len() as u8 - 1;
        page.flbas = state.format as u8;
        page.nmic = if options.shared { NMIC_SHARED } else { 0 };
        page.dlfeat = options.deallocated.0 | u8::from(options.deac) << 3;
        page.noiob.set(options.noiob);
        if let Some(nacwu_z) = options.nacwu_z {
            page.nsfeat |= NSFEAT_NSABP;
            page.nacwu_z.set(nacwu_z);
        }
        if let Some((nabsn_z, nabo)) = options.atomic_boundary {
            page.nsfeat |= NSFEAT_NSABP;
            page.nabsn_z.set(nabsn_z);
            page.nabo.set(nabo);
        }
        if let Some([npwg, npwa, npdg, npda, nows]) = options.optimal {
            page.nsfeat |= NSFEAT_OPTPERF;
            page.npwg_z.set(npwg);
            page.npwa_z.set(npwa);
            page.npdg_z.set(npdg);
            page.npda_z.set(npda);
            page.nows_z.set(nows);
        }
        page.nsattr = if state.write_protected { NSATTR_WRITE_PROTECTED } else { 0 };
        page.nguid = self.nguid(namespace);
        for (place, format) in page.lbaf.iter_mut().zip(namespace.formats()) {
            *place = format;
        }
        page.nvmcap.set(u128::from(state.blocks) << namespace.shift(&state));
        page.as_bytes().to_vec()
    }

    /// The same on every controller of the disk, and another for each namespace.
    fn nguid(&self, namespace: &Namespace) -> [u8; 16] {
        let mut nguid = [0xf0; 16];
        put_text(&mut nguid[..12], &self.disk.options().serial, 0);
        nguid[12..].copy_from_slice(&namespace.options.nsid.to_be_bytes());
        nguid
    }

    fn descriptors(&self, namespace: &Namespace) -> Vec<u8> {
        let mut page = Vec::with_capacity(IDENTIFY_LEN);
        let mut put = |nidt: DescriptorType, value: &[u8]| {
            let header = DescriptorHeader { nidt, len: value.len() as u8, reserved2: [0; 2] };
            page.extend_from_slice(header.as_bytes());
            page.extend_from_slice(value);
        };
        put(DescriptorType::NGUID, &self.nguid(namespace));
        put(DescriptorType::CSI, &[if namespace.options.zones.is_some() { Csi::ZONED.0 } else { Csi::NVM.0 }]);
        page.resize(IDENTIFY_LEN, 0);
        page
    }
}
