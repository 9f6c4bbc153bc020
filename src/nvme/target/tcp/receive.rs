//! The receiving side of a connection: bytes to PDUs, data to its place, complete commands to their slots.

use std::convert::Infallible;
use std::rc::Rc;

use hugepages::Buf;
use zerocopy::IntoBytes;

use super::conn::{Conn, End, MAX_H2C_DATA, Slot};
use crate::nvme::target::FuseTracker;
use crate::nvme::tcp::{
    ControllerParams, Decoder, Event, Framing, IcResponse, MAX_PREFIX_LEN, Role, WriteGrant, accept, ic_resp,
};
use crate::sys::tx::TxBatch;

/// Announced data from which a receive of its own, straight into the buffer, beats copying out of the receive buffer.
const DIRECT_MIN: usize = 16 * 1024;

/// The fused command that waits for its second half.
#[derive(Default)]
pub struct Fusing {
    /// Follows the order of commands.
    pub tracker: FuseTracker,
    /// The first half.
    pub first: Option<Rc<Slot>>,
}

/// Where the data of the current PDU goes.
enum Placement {
    /// In-capsule data: its command is complete when all is there, and not before.
    Capsule { slot: Rc<Slot>, at: usize },
    /// Data that an R2T asked for; `complete`: the last of it.
    Grant { slot: Rc<Slot>, at: usize, complete: bool },
    /// Data of a command that is not taken any more.
    Discard,
}

/// What of an event has to be waited for.
enum Rest {
    /// Nothing: it was handled.
    None,
    /// A buffer for that many bytes of in-capsule data.
    Buffer(Rc<Slot>, usize),
    /// The first command of the connection.
    Connect(Rc<Slot>),
    /// Room for the answer to ICReq.
    Answer(IcResponse),
}

/// The state of the receiving task.
#[derive(Default)]
pub struct Receiver {
    at: Option<Placement>,
    /// Read by whoever cleans up after the receiving task.
    pub fusing: Fusing,
}

impl Receiver {
    /// Reads until the end, whatever it is.
    pub async fn run(&mut self, conn: &Rc<Conn>, decoder: &mut Decoder) -> Result<Infallible, End> {
        loop {
            {
                // Given back before anything waits for the peer again.
                let received = conn.stream().recv_at_most(decoder.wanted(conn.awaits_long_data())).await?;
                let mut input = &received[..];
                while let Some(event) = decoder.next(&mut input)? {
                    match self.handle(conn, decoder, event)? {
                        Rest::None => {}
                        rest => self.wait(conn, decoder, rest).await?,
                    }
                }
            }
            while decoder.data_remaining() >= DIRECT_MIN && !matches!(self.at, Some(Placement::Discard)) {
                self.receive_direct(conn, decoder).await?;
                let mut nothing: &[u8] = &[];
                while let Some(event) = decoder.next(&mut nothing)? {
                    let rest = self.handle(conn, decoder, event)?;
                    self.wait(conn, decoder, rest).await?;
                }
            }
        }
    }

    /// Receives the rest of a large PDU straight into its buffer.
    async fn receive_direct(&mut self, conn: &Rc<Conn>, decoder: &mut Decoder) -> Result<(), End> {
        let (slot, at) = match self.at.as_mut() {
            Some(Placement::Capsule { slot, at } | Placement::Grant { slot, at, .. }) => (slot, at),
            Some(Placement::Discard) | None => return Err(End::Stream),
        };
        let remaining = decoder.data_remaining();
        // Gone: the connection is closing and the slot has given its buffer back.
        let Some(mut whole) = slot.data.borrow_mut().take() else { return Err(End::Stream) };
        let part = whole.split_to(*at + remaining);
        let mut part = conn.stream().recv_into(part, *at).await?;
        decoder.data_received(&part[*at..]);
        *at += remaining;
        if let Err(_rest) = part.unsplit(whole) {
            unreachable!("two parts of one buffer rejoin");
        }
        if conn.is_closing() {
            return Err(End::Stream);
        }
        *slot.data.borrow_mut() = Some(part);
        Ok(())
    }

    #[inline]
    fn handle(&mut self, conn: &Rc<Conn>, decoder: &mut Decoder, event: Event<'_>) -> Result<Rest, End> {
        // Slots of a closing connection have given their buffers back.
        if conn.is_closing() {
            return Err(End::Stream);
        }
        match event {
            Event::Command { data_len, .. } if conn.is_draining() => {
                self.at = (data_len > 0).then_some(Placement::Discard);
            }
            Event::Command { sqe, data_len } => {
                let slot = conn.take_slot()?;
                slot.put(&sqe);
                if data_len == 0 {
                    return Ok(self.start(conn, slot));
                }
                match conn.reactor().pool().alloc(data_len as usize) {
                    Some(buf) => self.place(slot, buf),
                    None => return Ok(Rest::Buffer(slot, data_len as usize)),
                }
            }
            Event::Data(bytes) => {
                let (slot, at) = match self.at.as_mut() {
                    Some(Placement::Capsule { slot, at } | Placement::Grant { slot, at, .. }) => (slot, at),
                    Some(Placement::Discard) => return Ok(Rest::None),
                    None => unreachable!("data follows a header that said where it goes"),
                };
                let mut data = slot.data.borrow_mut();
                let Some(data) = data.as_mut() else { return Err(End::Stream) };
                data[*at..*at + bytes.len()].copy_from_slice(bytes);
                *at += bytes.len();
            }
            Event::DataEnd { digest_ok } => match self.at.take() {
                Some(Placement::Capsule { slot, .. }) => {
                    if !digest_ok {
                        slot.damage();
                    }
                    return Ok(self.start(conn, slot));
                }
                Some(Placement::Grant { slot, complete, .. }) => slot.arrived(conn.reactor(), digest_ok, complete),
                Some(Placement::Discard) | None => {}
            },
            Event::H2cData(pdu) => {
                let slot = conn.slot(pdu.ttag.get()).ok_or(WriteGrant::unknown_tag());
                let accepted = slot.and_then(|slot| slot.accept(&pdu).map(|complete| (slot, complete)));
                let (slot, complete) = accepted.map_err(|error| decoder.refuse(error, pdu.as_bytes()))?;
                self.at = Some(Placement::Grant { slot, at: pdu.datao.get() as usize, complete });
            }
            Event::IcReq(request) => {
                let ours =
                    ControllerParams { header_digest: true, data_digest: true, cpda_z: 0, max_h2c_data: MAX_H2C_DATA };
                let (response, agreed) = accept(&request, &ours);
                decoder.set_digests(agreed.header_digest, agreed.data_digest);
                conn.agree(Framing::new(Role::Controller, &agreed));
                return Ok(Rest::Answer(response));
            }
            Event::Term { status, info } => {
                tracing::info!("{}: the host terminates the connection: {status:?} ({info:#x})", conn.peer());
                return Err(End::Terminated);
            }
            Event::IcResp(_) | Event::C2hData(_) | Event::R2t(_) | Event::Response(_) => {
                unreachable!("a decoder of the controller's side refuses these")
            }
        }
        Ok(Rest::None)
    }

    /// A command is complete.
    #[inline]
    fn start(&mut self, conn: &Rc<Conn>, slot: Rc<Slot>) -> Rest {
        let Some(queue) = conn.queue() else { return Rest::Connect(slot) };
        let fuse = slot.command().sqe.fuse();
        conn.start(queue, slot, fuse, &mut self.fusing);
        Rest::None
    }

    /// In-capsule data follows, and this is where it goes.
    fn place(&mut self, slot: Rc<Slot>, buf: Buf) {
        *slot.data.borrow_mut() = Some(buf);
        self.at = Some(Placement::Capsule { slot, at: 0 });
    }

    /// Does what of an event has to be waited for.
    async fn wait(&mut self, conn: &Rc<Conn>, decoder: &mut Decoder, rest: Rest) -> Result<(), End> {
        match rest {
            Rest::None => {}
            Rest::Buffer(slot, len) => {
                let buf = conn.reactor().buffer(len).await;
                self.place(slot, buf);
            }
            Rest::Connect(slot) => {
                conn.connect(&slot).await?;
                conn.update_limits(decoder);
            }
            Rest::Answer(response) => {
                let answer = |batch: &mut TxBatch| batch.push_head(|out| ic_resp(&response, out));
                conn.tx.push(1, MAX_PREFIX_LEN, answer).await?;
            }
        }
        Ok(())
    }
}
