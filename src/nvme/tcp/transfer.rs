//! Checks of data PDUs against what was asked for (TCP §3.3.2.1, §3.3.2.2). Plain data, one per transfer.

use super::pdu::{DataPdu, FatalError, FatalErrorStatus, field};

/// Data that a controller asked a host for with one R2T.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteGrant {
    /// Command identifier of the R2T.
    pub cid: u16,
    /// Transfer tag of the R2T.
    pub ttag: u16,
    /// Offset of the R2T in bytes.
    pub offset: u32,
    /// Length of the R2T in bytes.
    pub len: u32,
    /// Bytes that H2CData PDUs announced so far.
    pub announced: u32,
}

impl WriteGrant {
    /// The grant of an R2T with nothing received yet.
    pub const fn new(cid: u16, ttag: u16, offset: u32, len: u32) -> Self {
        Self { cid, ttag, offset, len, announced: 0 }
    }

    /// Takes the header of an H2CData PDU whose transfer tag named this grant. Returns whether the grant is complete
    /// once the PDU's data is in.
    ///
    /// # Errors
    /// The termination request: another command, a range outside the R2T, a gap or an overlap, or a LAST_PDU flag
    /// that does not stand exactly at the end of the R2T.
    pub fn accept(&mut self, pdu: &DataPdu) -> Result<bool, FatalError> {
        if pdu.cccid.get() != self.cid {
            return Err(FatalError::invalid_field(field::CCCID));
        }
        let start = u64::from(pdu.datao.get());
        let end = start + u64::from(pdu.datal.get());
        let grant_end = u64::from(self.offset) + u64::from(self.len);
        if start < u64::from(self.offset) || end > grant_end {
            return Err(FatalError::status(FatalErrorStatus::DATA_OUT_OF_RANGE));
        }
        if start != u64::from(self.offset) + u64::from(self.announced) {
            return Err(FatalError::status(FatalErrorStatus::SEQUENCE_ERROR));
        }
        let complete = end == grant_end;
        if pdu.last() != complete {
            return Err(FatalError::invalid_field(field::FLAGS));
        }
        self.announced += pdu.datal.get();
        Ok(complete)
    }

    /// The error for an H2CData PDU whose transfer tag names no grant.
    pub const fn unknown_tag() -> FatalError {
        FatalError::invalid_field(field::TTAG)
    }
}

/// Data that a host expects from a controller for one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadProgress {
    /// Length of the command's buffer in bytes; 0 for a command without data.
    pub len: u32,
    /// Bytes that C2HData PDUs announced so far.
    pub announced: u32,
    /// The last PDU has been announced.
    pub finished: bool,
}

impl ReadProgress {
    /// A command that expects up to `len` bytes.
    pub const fn new(len: u32) -> Self {
        Self { len, announced: 0, finished: false }
    }

    /// Takes the header of a C2HData PDU of this command. Returns whether it is the last one.
    ///
    /// # Errors
    /// The termination request: data for a command without a transfer or after the last PDU, a gap or an overlap,
    /// or a range outside the buffer.
    pub fn accept(&mut self, pdu: &DataPdu) -> Result<bool, FatalError> {
        if self.len == 0 || self.finished {
            return Err(FatalError::status(FatalErrorStatus::SEQUENCE_ERROR));
        }
        let end = u64::from(pdu.datao.get()) + u64::from(pdu.datal.get());
        if end > u64::from(self.len) {
            return Err(FatalError::status(FatalErrorStatus::DATA_OUT_OF_RANGE));
        }
        if pdu.datao.get() != self.announced {
            return Err(FatalError::status(FatalErrorStatus::SEQUENCE_ERROR));
        }
        self.announced += pdu.datal.get();
        self.finished = pdu.last();
        Ok(self.finished)
    }

    /// The error for a C2HData, R2T or response whose command identifier is not in flight.
    pub const fn unknown_command() -> FatalError {
        FatalError::invalid_field(field::CCCID)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::super::pdu::FLAG_LAST;
    use super::*;

    fn data(cid: u16, offset: u32, len: u32, last: bool) -> DataPdu {
        let mut pdu = DataPdu::new_zeroed();
        pdu.ch.flags = if last { FLAG_LAST } else { 0 };
        pdu.cccid.set(cid);
        pdu.datao.set(offset);
        pdu.datal.set(len);
        pdu
    }

    const OUT_OF_RANGE: FatalError = FatalError::status(FatalErrorStatus::DATA_OUT_OF_RANGE);
    const SEQUENCE: FatalError = FatalError::status(FatalErrorStatus::SEQUENCE_ERROR);

    #[test]
    fn a_grant_takes_its_range_once_and_in_order() {
        let mut grant = WriteGrant::new(7, 1, 4096, 8192);
        assert_eq!(grant.accept(&data(7, 4096, 4096, false)), Ok(false));
        assert_eq!(grant.accept(&data(7, 8192, 4096, true)), Ok(true));

        let fresh = WriteGrant::new(7, 1, 4096, 8192);
        for (pdu, error) in [
            (data(8, 4096, 4096, false), FatalError::invalid_field(8)),
            (data(7, 0, 4096, false), OUT_OF_RANGE),
            (data(7, 4096, 8196, true), OUT_OF_RANGE),
            (data(7, u32::MAX, u32::MAX, true), OUT_OF_RANGE),
            (data(7, 8192, 4096, true), SEQUENCE),
            (data(7, 4096, 4096, true), FatalError::invalid_field(1)),
            (data(7, 4096, 8192, false), FatalError::invalid_field(1)),
        ] {
            let mut grant = fresh;
            assert_eq!(grant.accept(&pdu), Err(error));
            assert_eq!(grant, fresh);
        }
    }

    #[test]
    fn read_data_arrives_once_and_in_order() {
        let mut read = ReadProgress::new(8192);
        assert_eq!(read.accept(&data(1, 0, 4096, false)), Ok(false));
        assert_eq!(read.accept(&data(1, 0, 4096, false)), Err(SEQUENCE));
        assert_eq!(read.accept(&data(1, 4096, 8192, true)), Err(OUT_OF_RANGE));
        assert_eq!(read.accept(&data(1, 4096, 4096, true)), Ok(true));
        assert_eq!(read.accept(&data(1, 8192, 0, true)), Err(SEQUENCE));
        assert_eq!(ReadProgress::new(0).accept(&data(1, 0, 4, true)), Err(SEQUENCE));
    }
}
