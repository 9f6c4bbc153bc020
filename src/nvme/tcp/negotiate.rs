//! What the two ends agree on when a connection starts (TCP §3.1, §3.6.2.2, §3.6.2.3). Pure functions.

use super::pdu::{DGST_DATA, DGST_HEADER, FatalError, MAX_H2C_DATA_MIN, field};

/// What a host asked for in its ICReq; the decoder has checked the ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcRequest {
    /// Alignment of data the host wants to receive, in dwords, zero's-based, 0 to 31.
    pub hpda_z: u8,
    /// Digests asked for, `DGST_*`.
    pub dgst: u8,
    /// Most outstanding R2Ts per command, zero's-based.
    pub maxr2t_z: u32,
}

/// What a controller granted in its ICResp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcResponse {
    /// Alignment of data the controller wants to receive, in dwords, zero's-based, 0 to 31.
    pub cpda_z: u8,
    /// Digests in use, `DGST_*`.
    pub dgst: u8,
    /// Most data bytes in one H2CData PDU.
    pub maxh2cdata: u32,
}

/// What a controller offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerParams {
    /// Grant the header digest to a host that asks for it.
    pub header_digest: bool,
    /// Grant the data digest to a host that asks for it.
    pub data_digest: bool,
    /// Alignment of received data in dwords, zero's-based. Linux refuses anything but 0.
    pub cpda_z: u8,
    /// Most data bytes in one H2CData PDU: a multiple of 4, at least 4,096.
    pub max_h2c_data: u32,
}

/// What a host asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostParams {
    /// Ask for the header digest.
    pub header_digest: bool,
    /// Ask for the data digest.
    pub data_digest: bool,
    /// Alignment of received data in dwords, zero's-based.
    pub hpda_z: u8,
    /// Most outstanding R2Ts per command, at least 1.
    pub max_r2t: u32,
}

impl HostParams {
    /// The fields of the ICReq that asks for this.
    pub const fn request(&self) -> IcRequest {
        IcRequest {
            hpda_z: self.hpda_z,
            dgst: digest_bits(self.header_digest, self.data_digest),
            maxr2t_z: self.max_r2t.saturating_sub(1),
        }
    }
}

/// What holds for the connection from the first PDU after ICReq and ICResp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Header digests are in use.
    pub header_digest: bool,
    /// Data digests are in use.
    pub data_digest: bool,
    /// Alignment of data towards the host in dwords, zero's-based.
    pub hpda_z: u8,
    /// Alignment of data towards the controller in dwords, zero's-based.
    pub cpda_z: u8,
    /// Most data bytes in one H2CData PDU.
    pub max_h2c_data: u32,
    /// Most outstanding R2Ts per command.
    pub max_r2t: u32,
}

const fn digest_bits(header: bool, data: bool) -> u8 {
    (if header { DGST_HEADER } else { 0 }) | (if data { DGST_DATA } else { 0 })
}

/// The controller's side: the answer to a request, and what then holds. A digest is in use when the host asked for it
/// and the controller grants it.
pub fn accept(request: &IcRequest, ours: &ControllerParams) -> (IcResponse, Negotiated) {
    let dgst = request.dgst & digest_bits(ours.header_digest, ours.data_digest);
    let response = IcResponse { cpda_z: ours.cpda_z, dgst, maxh2cdata: ours.max_h2c_data };
    (response, agreed(request, &response))
}

/// The host's side: what holds after the controller's answer.
///
/// # Errors
/// The termination request to send: a digest that was not asked for, or a MAXH2CDATA below 4,096 or not a multiple
/// of 4 (TCP §3.1, §3.3.1.1).
pub fn conclude(request: &IcRequest, response: &IcResponse) -> Result<Negotiated, FatalError> {
    if response.dgst & !request.dgst & (DGST_HEADER | DGST_DATA) != 0 {
        return Err(FatalError::invalid_field(field::DGST));
    }
    if response.maxh2cdata < MAX_H2C_DATA_MIN || !response.maxh2cdata.is_multiple_of(4) {
        return Err(FatalError::invalid_field(field::MAXH2CDATA));
    }
    Ok(agreed(request, response))
}

fn agreed(request: &IcRequest, response: &IcResponse) -> Negotiated {
    Negotiated {
        header_digest: response.dgst & DGST_HEADER != 0,
        data_digest: response.dgst & DGST_DATA != 0,
        hpda_z: request.hpda_z,
        cpda_z: response.cpda_z,
        max_h2c_data: response.maxh2cdata,
        max_r2t: request.maxr2t_z.saturating_add(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: ControllerParams =
        ControllerParams { header_digest: true, data_digest: false, cpda_z: 0, max_h2c_data: 131_072 };

    #[test]
    fn a_digest_needs_both_sides() {
        for asked in 0..4u8 {
            let request = IcRequest { hpda_z: 3, dgst: asked, maxr2t_z: 3 };
            let (response, agreed) = accept(&request, &OURS);
            assert_eq!(response.dgst, asked & DGST_HEADER);
            assert_eq!(agreed.header_digest, asked & DGST_HEADER != 0);
            assert!(!agreed.data_digest);
            assert_eq!((agreed.hpda_z, agreed.max_r2t, agreed.max_h2c_data), (3, 4, 131_072));
            assert_eq!(conclude(&request, &response), Ok(agreed));
        }
    }

    #[test]
    fn a_host_refuses_what_it_did_not_ask_for() {
        let request = HostParams { header_digest: false, data_digest: true, hpda_z: 0, max_r2t: 1 }.request();
        let response = IcResponse { cpda_z: 0, dgst: DGST_HEADER, maxh2cdata: 4096 };
        assert_eq!(conclude(&request, &response), Err(FatalError::invalid_field(11)));
        for bad in [0, 4092, 4097, 4098] {
            let response = IcResponse { cpda_z: 0, dgst: 0, maxh2cdata: bad };
            assert_eq!(conclude(&request, &response), Err(FatalError::invalid_field(12)), "{bad}");
        }
    }

    #[test]
    fn the_widest_r2t_window_does_not_overflow() {
        let request = IcRequest { hpda_z: 0, dgst: 0, maxr2t_z: u32::MAX };
        assert_eq!(accept(&request, &OURS).1.max_r2t, u32::MAX);
    }
}
