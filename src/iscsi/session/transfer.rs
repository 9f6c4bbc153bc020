//! The data of one write: what comes unasked, what is asked for, and what is wrong with what came (RFC 7143 §4.2.5.2,
//! §11.7, §11.8).

use super::super::keys::Params;
use super::super::pdu::{DataOut, FLAG_FINAL, NO_TAG};

/// Most R2Ts of a task at a time, whatever is negotiated: Data-Out names its R2T by a place in a table of this size.
pub const R2TS_MAX: usize = 8;

/// Why the data of a command cannot be used. The command ends with CHECK CONDITION and this sense, nothing of it is done
/// (RFC 7143 §11.4.7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportFault {
    /// Unsolicited data where none may be.
    UnexpectedUnsolicited,
    /// More or less data than the sequence has, or in another order.
    IncorrectAmount,
    /// A data digest or the numbers of the PDUs show that data was lost.
    ServiceCrc,
}

impl TransportFault {
    /// Sense key, additional sense code and its qualifier.
    pub const fn sense(self) -> (u8, u8, u8) {
        match self {
            TransportFault::UnexpectedUnsolicited => (0x0b, 0x0c, 0x0c),
            TransportFault::IncorrectAmount => (0x0b, 0x0c, 0x0d),
            TransportFault::ServiceCrc => (0x0b, 0x47, 0x05),
        }
    }
}

/// How far the data of a write has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteProgress {
    /// Data is on its way, or [`super::Session::data_wanted`] has not been called.
    Arriving,
    /// More may be asked for with [`super::Session::next_r2t`].
    Ask,
    /// All that is wanted is in its place.
    Complete,
    /// Nothing is on its way any more, and what came cannot be used: answer with the sense of the fault.
    Failed(TransportFault),
}

/// A sequence of Data-Out PDUs: of one R2T, or the unsolicited one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sequence {
    ttt: u32,
    next_offset: u32,
    end: u32,
    data_sn: u32,
}

impl Sequence {
    /// Takes a header. Whether the sequence is over, and what is wrong with the PDU.
    fn take(&mut self, pdu: &DataOut) -> (bool, Option<TransportFault>) {
        let last = pdu.flags & FLAG_FINAL != 0;
        let end = u64::from(pdu.buffer_offset.get()) + u64::from(pdu.data_len.get());
        let fault = if pdu.data_sn.get() != self.data_sn {
            Some(TransportFault::ServiceCrc)
        } else if pdu.buffer_offset.get() != self.next_offset || end > u64::from(self.end) {
            Some(TransportFault::IncorrectAmount)
        } else {
            None
        };
        // What is counted is what the initiator counts, or one lost PDU would fail all that follow in other ways.
        self.data_sn = self.data_sn.wrapping_add(1);
        self.next_offset = self.next_offset.saturating_add(pdu.data_len.get()).min(self.end);
        (last, fault)
    }
}

/// The data of one write.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    expected_len: u32,
    /// The unsolicited sequence while it goes on.
    unsolicited: Option<Sequence>,
    grants: [Option<Sequence>; R2TS_MAX],
    grants_max: u8,
    max_burst: u32,
    /// Where the next R2T begins: all before it has come or has been asked for.
    next_offset: u32,
    wanted: Option<u32>,
    fault: Option<TransportFault>,
}

/// Where the data of a Data-Out goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// To this offset.
    Place(u32),
    /// Nowhere: it belongs to the task and is at fault.
    Drop,
    /// Nowhere: it belongs to nothing that is there (any more).
    Stale,
}

impl Transfer {
    /// A command that has nothing to receive.
    pub(super) const NONE: Transfer = Transfer {
        expected_len: 0,
        unsolicited: None,
        grants: [None; R2TS_MAX],
        grants_max: 1,
        max_burst: 0,
        next_offset: 0,
        wanted: None,
        fault: None,
    };

    /// The data of a write of `expected_len` bytes, whose command has brought `immediate_len` of them. `goes_on`: unsolicited Data-Out
    /// follows.
    pub(super) fn new(params: &Params, expected_len: u32, immediate_len: u32, goes_on: bool) -> Transfer {
        let end = params.first_burst.min(expected_len);
        let sequence = Sequence { ttt: NO_TAG, next_offset: immediate_len, end, data_sn: 0 };
        Transfer {
            expected_len,
            unsolicited: goes_on.then_some(sequence),
            grants_max: params.max_outstanding_r2t.clamp(1, R2TS_MAX as u16) as u8,
            max_burst: params.max_burst,
            next_offset: immediate_len,
            ..Transfer::NONE
        }
    }

    /// The command wants `len` bytes.
    pub(super) fn want(&mut self, len: u32) {
        self.wanted = Some(len.min(self.expected_len));
    }

    pub(super) fn fail(&mut self, fault: TransportFault) {
        self.fault.get_or_insert(fault);
    }

    /// Takes the header of a Data-Out.
    pub(super) fn take(&mut self, pdu: &DataOut) -> Taken {
        let ttt = pdu.ttt.get();
        if ttt == NO_TAG {
            let Some(mut sequence) = self.unsolicited else {
                self.fail(TransportFault::UnexpectedUnsolicited);
                return Taken::Drop;
            };
            let (last, fault) = sequence.take(pdu);
            self.next_offset = sequence.next_offset;
            self.unsolicited = (!last).then_some(sequence);
            return self.taken(pdu, fault);
        }
        let Some(place) = self.grants.iter_mut().find(|grant| grant.is_some_and(|grant| grant.ttt == ttt)) else {
            return Taken::Stale;
        };
        let Some(sequence) = place else { return Taken::Stale };
        let (last, mut fault) = sequence.take(pdu);
        let at_end = sequence.next_offset == sequence.end;
        // The last PDU ends exactly where the R2T does (RFC 7143 §11.4.7.2, §11.7.1).
        if last != at_end {
            fault = fault.or(Some(TransportFault::IncorrectAmount));
        }
        if last || at_end {
            *place = None;
        }
        self.taken(pdu, fault)
    }

    fn taken(&mut self, pdu: &DataOut, fault: Option<TransportFault>) -> Taken {
        match fault {
            Some(fault) => {
                self.fail(fault);
                Taken::Drop
            }
            None => Taken::Place(pdu.buffer_offset.get()),
        }
    }

    /// Asks for the next data, at most `len_max` bytes, by the tag `ttt`: offset and length.
    pub(super) fn ask(&mut self, len_max: u32, ttt: u32) -> Option<(u32, u32)> {
        let wanted = self.wanted?;
        let open = self.grants.iter().flatten().count();
        if self.unsolicited.is_some() || self.fault.is_some() || open >= usize::from(self.grants_max) {
            return None;
        }
        let (offset, len) =
            (self.next_offset, wanted.saturating_sub(self.next_offset).min(self.max_burst).min(len_max));
        if len == 0 {
            return None;
        }
        let place = self.grants.iter_mut().find(|grant| grant.is_none())?;
        *place = Some(Sequence { ttt, next_offset: offset, end: offset + len, data_sn: 0 });
        self.next_offset = offset + len;
        Some((offset, len))
    }

    /// How far it has come.
    pub(super) fn progress(&self) -> WriteProgress {
        let open = self.grants.iter().flatten().count();
        if self.unsolicited.is_some() {
            return WriteProgress::Arriving;
        }
        match (self.fault, self.wanted) {
            // Data on its way is waited for before the task ends (RFC 7143 §7.8, §11.17.1).
            (Some(_), _) if open != 0 => WriteProgress::Arriving,
            (Some(fault), _) => WriteProgress::Failed(fault),
            (None, None) => WriteProgress::Arriving,
            (None, Some(wanted)) if self.next_offset >= wanted => {
                if open == 0 {
                    WriteProgress::Complete
                } else {
                    WriteProgress::Arriving
                }
            }
            (None, Some(_)) if open < usize::from(self.grants_max) => WriteProgress::Ask,
            (None, Some(_)) => WriteProgress::Arriving,
        }
    }
}
