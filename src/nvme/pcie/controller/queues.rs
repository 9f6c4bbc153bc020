//! The I/O queues of a controller, and its end.

use super::*;

impl<P: Port> Controller<P> {
    /// Gives the controller pages in which the doorbells' values are, if it looks at such (Base §5.8): most of their registers need not
    /// be written then.
    pub(super) async fn share_doorbells(&self) -> Outcome<()> {
        if self.identity().oacs.get() & OACS_DOORBELL_BUFFER_CONFIG == 0 {
            return Ok(());
        }
        let page = 1 << self.page_shift;
        let (values, _) = self.memory("shadow doorbells", page)?;
        let (events, _) = self.memory("shadow doorbells", page)?;
        // The command has two pages: both must stay as long as it may be carried out, which is until the controller is quiet.
        *self.shadows.borrow_mut() = Some([values.clone(), events.clone()]);
        match self.configure_doorbells(&values, &events).await {
            Err(ControllerError::Refused { .. }) => {
                *self.shadows.borrow_mut() = None;
                Ok(())
            }
            other => other,
        }
    }

    async fn configure_doorbells(&self, values: &DeviceBuf, events: &DeviceBuf) -> Outcome<()> {
        let command = "Doorbell Buffer Config";
        let address = |page| self.port.memory(page).ok_or(ControllerError::Unreachable { what: "shadow doorbells" });
        self.ask(command, doorbell_buffer_config(address(values)?, address(events)?), None).await?;
        Ok(())
    }

    /// Has the controller take part of its addresses for its memory buffer (Base §8.5), if submission queues are to lie there: offset in
    /// its BAR, and bytes.
    pub(super) fn open_buffer(&self) -> Option<(u32, u64)> {
        let (buffer, registers) = (self.port.buffer()?, self.port.registers());
        let (location, size) = find_buffer(registers)?;
        let start = size.unit().checked_mul(u64::from(location.offset())).filter(|start| *start < buffer.size())?;
        registers.write64(Property::CMBMSC.0, CmbSpace::at(BUFFER_BASE).0);
        if registers.read32(Property::CMBSTS.0) & CMBSTS_BASE_INVALID != 0 {
            registers.write64(Property::CMBMSC.0, CmbSpace::CRE);
            return None;
        }
        Some((u32::try_from(start).ok()?, size.bytes().min(buffer.size() - start)))
    }

    /// The place of a queue's submissions in the controller memory buffer, if there is one left.
    fn place_in_buffer(&self, qid: u16, entries: u16) -> Option<u32> {
        let (start, len) = self.buffer.get()?;
        let each = (u64::from(entries) * SQE_LEN as u64).next_multiple_of(1 << self.page_shift);
        let at = u64::from(qid - 1) * each;
        (at + each <= len).then(|| u32::try_from(u64::from(start) + at).ok()).flatten()
    }

    /// Has I/O queues gather completions for an interrupt, as asked for. One that does not interrupts as it does.
    async fn coalesce(&self, vectors: impl Iterator<Item = u16>) -> Outcome<()> {
        let Some(coalescing) = self.options.coalescing else { return Ok(()) };
        let all = (FeatureId::INTERRUPT_COALESCING, coalescing.to_dword());
        let each = |vector| InterruptVector { vector, coalescing_disabled: false }.to_dword();
        for (fid, value) in [all].into_iter().chain(vectors.map(|vector| (FeatureId::INTERRUPT_VECTOR, each(vector)))) {
            match self.set_feature("Set Features (interrupt coalescing)", fid, value).await {
                Ok(_) => {}
                Err(error @ ControllerError::Refused { .. }) => {
                    tracing::warn!("NVMe controller: {error}: it interrupts as it does by itself");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Creates a queue pair for each of `reactors`, in memory of theirs, or for as many of them as the controller has.
    ///
    /// # Errors
    /// If there is not even one of those that are wanted.
    pub async fn create_queues(&self, reactors: &[u16]) -> Outcome<Vec<QueueSeed<P>>> {
        if reactors.is_empty() {
            return Ok(Vec::new());
        }
        let granted = self.negotiate(reactors.len() as u16).await?;
        let mut seeds = Vec::new();
        for (qid, reactor) in (1..=granted).zip(reactors) {
            let seed = self.seed(qid, *reactor).await?;
            let shape = Created { qid, vector: seed.vector, memory: seed.memory.rings.clone() };
            self.create(&shape).await?;
            self.created.borrow_mut().push(shape);
            seeds.push(seed);
        }
        self.coalesce(seeds.iter().filter_map(|seed| seed.vector)).await?;
        Ok(seeds)
    }

    /// Creates the queue pairs anew that there were, in the same memory.
    pub(super) async fn create_again(&self) -> Outcome<()> {
        let created: Vec<Created> = self.created.borrow().clone();
        if created.is_empty() {
            return Ok(());
        }
        let granted = self.negotiate(created.len() as u16).await?;
        if usize::from(granted) < created.len() {
            let (had, has) = (created.len(), granted);
            return Err(ControllerError::Unfit(format!("the controller has {has} queues now, where it had {had}")));
        }
        for shape in &created {
            self.create(shape).await?;
        }
        self.coalesce(created.iter().filter_map(|shape| shape.vector)).await
    }

    async fn negotiate(&self, count: u16) -> Outcome<u16> {
        let wanted = QueueCounts::pairs(count).to_dword();
        let granted = self.set_feature("Set Features (queues)", FeatureId::NUMBER_OF_QUEUES, wanted).await?;
        Ok(QueueCounts::of(granted).usable().min(u32::from(count)) as u16)
    }

    async fn set_feature(&self, command: &'static str, fid: FeatureId, value: u32) -> Outcome<u32> {
        let mut sqe = Sqe::bare(AdminOpcode::SET_FEATURES.0, 0);
        FeatureFields { fid, select: FeatureSelect::CURRENT, save: false }.put(&mut sqe);
        sqe.cdw11.set(value);
        Ok(self.ask(command, sqe, None).await?.result as u32)
    }

    async fn create(&self, Created { qid, vector, memory }: &Created) -> Outcome<()> {
        let (qid, size_z) = (*qid, memory.entries - 1);
        let completions = self.address("I/O queues", &memory.completions)?;
        let submissions = self.submissions_at("I/O queues", &memory.submissions)?;
        let (interrupts, vector) = (vector.is_some(), vector.unwrap_or(0));
        let cq = CreateCqFields { qid, size_z, contiguous: true, interrupts, vector };
        self.ask("Create I/O Completion Queue", cq.to_sqe(completions), None).await?;
        let sq = CreateSqFields { qid, size_z, contiguous: true, priority: QueuePriority::URGENT, cqid: qid };
        self.ask("Create I/O Submission Queue", sq.to_sqe(submissions), None).await?;
        Ok(())
    }

    /// Entries of each ring of an I/O queue.
    pub(super) fn entries(&self) -> u16 {
        self.options.depth.clamp(1, SLOTS_MAX).saturating_add(1).min(self.cap.mqes_z().saturating_add(1))
    }

    async fn seed(&self, qid: u16, reactor: u16) -> Outcome<QueueSeed<P>> {
        let entries = self.entries();
        let depth = entries - 1;
        let sgls = self.identity().sgls.get();
        let pointers = Pointers::new(self.page_shift, if self.options.prp_only { 0 } else { sgls });
        let (port, page_shift, list_len) = (self.port.clone(), self.page_shift, pointers.list_len(self.transfer_max()));
        let in_buffer = self.place_in_buffer(qid, entries);
        // Each reactor has its share of the memory: that of all would be much for the home.
        let own = self.reactor.call(reactor, move |there| {
            let vector = (qid < port.vectors() && port.connect(qid, there)).then_some(qid);
            let block = |what, len| block(there.pool(), &port, page_shift, (what, len));
            QueueMemory::new(block, (entries, in_buffer), list_len).map(|memory| (memory, vector))
        });
        let (memory, vector) = own.await?;
        let doorbells = Doorbells::of(self.cap);
        let shadows = self.shadows.borrow().as_ref().and_then(|[values, events]| {
            let at = [doorbells.shadow_sq_tail(qid), doorbells.shadow_cq_head(qid)];
            // Queues beyond the page have none.
            at.iter()
                .all(|at| at + 4 <= 1 << self.page_shift)
                .then(|| at.map(|at| Shadow { values: values.clone(), events: events.clone(), at: at as usize }))
        });
        Ok(QueueSeed {
            port: self.port.clone(),
            qid,
            depth,
            vector,
            pointers,
            memory,
            shadows,
            doorbells: [self.offset(doorbells.sq_tail(qid))?, self.offset(doorbells.cq_head(qid))?],
        })
    }

    /// Takes the controller down in order: its queues, to which no doorbell is written any more, then its caches. Gives the proof that they may
    /// end, and whether the caches were written back.
    ///
    /// # Errors
    /// If it does not even become disabled.
    pub async fn close(&self) -> Outcome<(Quiet, Outcome<()>)> {
        let deleted = self.delete_queues().await;
        // Its caches are written back by a register, whatever its queues do.
        let shut = match &deleted {
            Err(error @ (ControllerError::Gone | ControllerError::Fatal { .. })) => Err(error.clone()),
            _ => self.shut_down().await,
        };
        Ok((self.stop().await?, deleted.and(shut)))
    }

    async fn delete_queues(&self) -> Outcome<()> {
        self.look()?;
        let created: Vec<u16> = self.created.borrow().iter().map(|created| created.qid).collect();
        for qid in created.into_iter().rev() {
            for opcode in [AdminOpcode::DELETE_IO_SQ, AdminOpcode::DELETE_IO_CQ] {
                match self.ask("Delete I/O queue", delete_queue(opcode, qid), None).await {
                    Ok(_) => {}
                    Err(error @ ControllerError::Refused { .. }) => tracing::debug!("queue {qid}: {error}"),
                    // It would not answer for the others either, each for as long.
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Makes the controller quiet, whatever it does.
    ///
    /// # Errors
    /// If it does not become disabled.
    pub async fn stop(&self) -> Outcome<Quiet> {
        if let Some(admin) = self.admin.borrow().as_ref() {
            admin.stop();
        }
        let quiet = match self.disable().await {
            Ok(quiet) => quiet,
            Err(error) => self.force(error).await?,
        };
        if let Some(admin) = self.admin.take() {
            admin.end(&quiet);
        }
        Ok(quiet)
    }

    /// Where a controller cannot be disabled: its function is reset, from which it may come up again, or it is cut off.
    async fn force(&self, error: ControllerError) -> Outcome<Quiet> {
        let all = [Force::Reset, Force::CutOff];
        for how in if error == ControllerError::Gone { &all[1..] } else { &all[..] } {
            if self.forced(*how).await {
                tracing::warn!("NVMe controller: {error}: {how:?}");
                self.crashed.set(true);
                self.cut_off.set(*how == Force::CutOff);
                self.quiet.set(true);
                return Ok(Quiet(()));
            }
        }
        Err(error)
    }

    async fn forced(&self, how: Force) -> bool {
        let deadline = self.reactor.clock().now() + NVME_FORCE_NS;
        loop {
            match self.port.force(how) {
                Some(done) => return done,
                None if self.reactor.clock().now() >= deadline => return false,
                None => self.reactor.sleep(LOOK_NS).await,
            }
        }
    }

    /// Brings a controller that was stopped up again, with the queues that it had.
    ///
    /// # Errors
    /// If it does not come up, or is not the one that it was.
    pub async fn restart(&self, quiet: &Quiet) -> Outcome<()> {
        self.csts()?;
        if self.cut_off.get() {
            return Err(ControllerError::Unfit(
                "the controller was kept from memory, as it could not be disabled".into(),
            ));
        }
        let before = self.identity();
        // A reset of the function may have taken that away.
        self.port.let_in().map_err(ControllerError::Unfit)?;
        self.enable(quiet).await?;
        self.identify_controller().await?;
        let now = self.identity();
        if (before.sn, before.mn) != (now.sn, now.mn) {
            return Err(ControllerError::Unfit("another controller is in its place".to_owned()));
        }
        self.ask_for_events().await?;
        self.compare_namespaces().await?;
        // Those of before, whose places the queues know. The controller must not find the values of queues that are no more.
        let shadows = self.shadows.borrow().clone();
        if let Some([values, events]) = shadows {
            values.zero();
            events.zero();
            self.configure_doorbells(&values, &events).await?;
        }
        self.create_again().await
    }

    /// Normal shutdown (Base §3.6.1): the controller writes back what it has cached.
    async fn shut_down(&self) -> Outcome<()> {
        let registers = self.port.registers();
        let ms = match self.identity().rtd3e_us.get() {
            0 => NVME_SHUTDOWN_MS,
            us => u64::from(us).div_ceil(1000).clamp(NVME_SHUTDOWN_MS, NVME_SHUTDOWN_MS_MAX),
        };
        let cc = registers.read32(Property::CC.0);
        registers.write32(Property::CC.0, cc & !(Cc::SHN_NORMAL | Cc::SHN_ABRUPT) | Cc::SHN_NORMAL);
        self.until("shutting down", ms, |csts| csts.shst() == 2).await
    }
}

/// Where the controller memory buffer is, if the controller has one for submission queues.
pub(in super::super) fn find_buffer(registers: &impl Registers) -> Option<(CmbLocation, CmbSize)> {
    if !Cap(registers.read64(Property::CAP.0)).has(Cap::CMBS) {
        return None;
    }
    registers.write64(Property::CMBMSC.0, CmbSpace::CRE);
    let location = CmbLocation(registers.read32(Property::CMBLOC.0));
    let size = CmbSize(registers.read32(Property::CMBSZ.0));
    (size.has(CmbSize::SQS) && size.bytes() > 0).then_some((location, size))
}
