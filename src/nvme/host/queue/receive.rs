//! The receiving task of a connection.

use zerocopy::IntoBytes;

use super::{Core, DIRECT_MIN};
use crate::net::StreamError;
use crate::nvme::host::Ended;
use crate::nvme::tcp::{Decoder, Event, FatalError, FatalErrorStatus, Role, term_req};

/// The decoder and the data PDU it is in.
struct Receiver {
    decoder: Decoder,
    /// Slot that the data belongs to, and whether the PDU is the response, too.
    current: Option<(u16, bool)>,
}

impl Core {
    pub(super) async fn receive_all(&self, decoder: Decoder) {
        let mut receiver = Receiver { decoder, current: None };
        let reason = self.receive(&mut receiver).await;
        if let Ended::Protocol(FatalError::Terminate { status, info }) = reason {
            let header = receiver.decoder.offending_header();
            self.slots.borrow_mut().push_last(|out| term_req(Role::Host, status, info, header, out));
        }
        self.end(reason);
        self.task_ends();
    }

    async fn receive(&self, receiver: &mut Receiver) -> Ended {
        loop {
            let wanted = receiver.decoder.wanted(self.slots.borrow().awaits_long_data());
            let received = match self.stream.recv_at_most(wanted).await {
                Ok(received) => received,
                Err(error) => return Ended::Stream(error),
            };
            let mut input = &received[..];
            loop {
                match self.take_apart(receiver, &mut input) {
                    Ok(None) => break,
                    Ok(Some((index, len))) => {
                        let buf = self.reactor.buffer(len).await;
                        self.slots.borrow_mut().give_buffer(index, buf);
                    }
                    Err(ended) => return ended,
                }
            }
            drop(received);
            match self.receive_in_place(receiver).await {
                Ok(()) => {}
                Err(ended) => return ended,
            }
        }
    }

    /// Receives the rest of a long data PDU straight into the I/O's buffers.
    async fn receive_in_place(&self, receiver: &mut Receiver) -> Result<(), Ended> {
        loop {
            let remaining = receiver.decoder.data_remaining();
            if remaining < DIRECT_MIN {
                return Ok(());
            }
            let Some((index, _)) = receiver.current else {
                return Ok(());
            };
            let taken = self.slots.borrow_mut().take_place(index, remaining, DIRECT_MIN);
            let Some(mut placed) = taken else {
                return Ok(());
            };
            let position = placed.position;
            let (buf, result): (_, Result<(), StreamError>) = self.stream.fill(placed.buf, position).await;
            if result.is_ok() {
                receiver.decoder.data_received(&buf[position..]);
            }
            placed.buf = buf;
            self.slots.borrow_mut().return_place(placed);
            result.map_err(Ended::Stream)?;
            // Without a data digest the PDU ends here.
            self.take_apart(receiver, &mut &[][..])?;
        }
    }

    /// Takes received bytes apart. `Some`: before it goes on, this command must be given a buffer of that length, of which the
    /// pool has none now.
    fn take_apart(&self, receiver: &mut Receiver, input: &mut &[u8]) -> Result<Option<(u16, usize)>, Ended> {
        let mut slots = self.slots.borrow_mut();
        let reactor = &self.reactor;
        let Receiver { decoder, current } = receiver;
        let (mut answered, mut lacking) = (false, None);
        while let Some(event) = decoder.next(input).map_err(Ended::Protocol)? {
            match event {
                Event::Data(bytes) => {
                    if let Some((index, _)) = *current {
                        slots.place(index, bytes);
                    }
                }
                Event::C2hData(pdu) => {
                    let index = slots.on_data(&pdu).map_err(|e| Ended::Protocol(decoder.refuse(e, pdu.as_bytes())))?;
                    *current = Some((index, pdu.success()));
                    if let Some(len) = slots.lacks_buffer(index) {
                        match reactor.pool().alloc(len) {
                            Some(buf) => slots.give_buffer(index, buf),
                            None => {
                                lacking = Some((index, len));
                                break;
                            }
                        }
                    }
                }
                Event::DataEnd { digest_ok } => {
                    if let Some((index, success)) = current.take() {
                        if !digest_ok {
                            slots.damaged(index);
                        }
                        if success {
                            slots.on_success(index, reactor);
                            answered = true;
                        }
                    }
                }
                Event::Response(cqe) => {
                    slots.on_response(&cqe, reactor).map_err(Ended::Protocol)?;
                    answered = true;
                }
                Event::R2t(r2t) => {
                    slots.on_r2t(&r2t).map_err(|e| Ended::Protocol(decoder.refuse(e, r2t.as_bytes())))?;
                }
                Event::Term { status, info } => return Err(Ended::Terminated { status, info }),
                // The decoder refuses what a controller does not send; ICResp came before this task began.
                Event::IcReq(_) | Event::IcResp(_) | Event::Command { .. } | Event::H2cData(_) => {
                    return Err(Ended::Protocol(FatalError::status(FatalErrorStatus::SEQUENCE_ERROR)));
                }
            }
        }
        let unsent = slots.fill(reactor.clock().now());
        drop(slots);
        if unsent {
            self.kick();
        }
        if answered {
            self.wake_waiters();
        }
        Ok(lacking)
    }
}
