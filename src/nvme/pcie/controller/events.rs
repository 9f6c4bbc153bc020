//! What a controller tells of by itself: asynchronous events, and the logs that they point to.

use zerocopy::FromBytes;

use super::*;
use crate::nvme::spec::{
    AsyncEvent, AsyncEventResult, GetLogFields, LogId, NSID_BROADCAST, NoticeInfo, OAES_FIRMWARE_ACTIVATION,
    OAES_NAMESPACE_ATTRIBUTE, SmartLog, async_event_config, critical_warning,
};

/// Bytes of the longest log that an event points to.
const LOG_LEN: usize = 4096;

/// What a controller has told.
#[derive(Clone, Debug)]
pub enum ControllerEvent {
    /// A namespace has changed, come or gone: those that are active now.
    Namespaces(Vec<NamespaceInfo>),
    /// Its health: bits of [`critical_warning`], and the composite temperature in kelvin.
    Health {
        /// Bits of [`critical_warning`]; 0: it is well again.
        warning: u8,
        /// In kelvin; 0 when not reported.
        temperature_k: u16,
    },
    /// It activates a firmware, and carries out nothing meanwhile.
    FirmwareActivation,
    /// Anything else.
    Other(AsyncEvent),
}

impl ControllerEvent {
    /// What it says of its health, in words.
    pub fn warnings(warning: u8) -> String {
        let words = [
            (critical_warning::SPARE, "its spare blocks run out"),
            (critical_warning::TEMPERATURE, "its temperature is beyond a threshold"),
            (critical_warning::RELIABILITY, "it is not reliable any more"),
            (critical_warning::READ_ONLY, "it takes no writes any more"),
            (critical_warning::BACKUP, "the backup of its volatile memory has failed"),
            (critical_warning::PERSISTENT_MEMORY, "its persistent memory is read only or not reliable"),
        ];
        let said: Vec<&str> = words.iter().filter(|(bit, _)| warning & bit != 0).map(|(_, words)| *words).collect();
        if said.is_empty() { "it is well".to_owned() } else { said.join(", ") }
    }
}

impl<P: Port> Controller<P> {
    /// Has the controller tell of its health, of changed namespaces, and of firmware that it activates, as far as it can.
    pub(super) async fn ask_for_events(&self) -> Outcome<()> {
        let can = self.identity().oaes.get();
        let mut config = async_event_config::SMART;
        for (can_it, bit) in [
            (OAES_NAMESPACE_ATTRIBUTE, async_event_config::NAMESPACE_ATTRIBUTE),
            (OAES_FIRMWARE_ACTIVATION, async_event_config::FIRMWARE_ACTIVATION),
        ] {
            config |= if can & can_it != 0 { bit } else { 0 };
        }
        let mut sqe = Sqe::bare(AdminOpcode::SET_FEATURES.0, 0);
        let fields = FeatureFields { fid: FeatureId::ASYNC_EVENT_CONFIG, select: FeatureSelect::CURRENT, save: false };
        fields.put(&mut sqe);
        sqe.cdw11.set(config);
        match self.ask("Set Features (events)", sqe, None).await {
            Ok(_) => Ok(()),
            // It serves without.
            Err(ControllerError::Refused { status, .. }) => {
                tracing::info!("an NVMe controller tells of nothing by itself: {status:?}");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Whether its admin queue has room for a request that may wait for ever, beside the commands that must not.
    pub(in super::super) fn can_wait_for_events(&self) -> bool {
        self.admin_memory.borrow().as_ref().is_some_and(|memory| memory.entries > 3)
    }

    /// Waits for the next event, however long that takes, and reads the log that it points to, which lets the controller tell of the next.
    ///
    /// # Errors
    /// If the controller is being stopped, refuses, or does not answer.
    pub async fn next_event(&self) -> Outcome<ControllerEvent> {
        let command = "Asynchronous Event Request";
        let Some(admin) = self.admin.borrow().clone() else {
            return Err(ControllerError::Stopped { command });
        };
        let sqe = Sqe::bare(AdminOpcode::ASYNC_EVENT_REQUEST.0, 0);
        let event = match admin.command(sqe, None, Limit::Never).await {
            Ok(answer) if answer.status.is_success() => AsyncEventResult::of(answer.result as u32),
            Ok(Answer { status, .. }) => return Err(ControllerError::Refused { command, status }),
            Err(_) => return Err(ControllerError::Stopped { command }),
        };
        let log = self.log(event.log).await?;
        Ok(match event.event() {
            AsyncEvent::Notice(NoticeInfo::NAMESPACE_ATTRIBUTE_CHANGED) => {
                self.identify_namespaces().await?;
                self.remember(&self.namespaces());
                ControllerEvent::Namespaces(self.namespaces())
            }
            AsyncEvent::Notice(NoticeInfo::FIRMWARE_ACTIVATION) => ControllerEvent::FirmwareActivation,
            AsyncEvent::Health(_) => match SmartLog::read_from_prefix(&log) {
                Ok((smart, _)) => ControllerEvent::Health {
                    warning: smart.critical_warning,
                    temperature_k: smart.temperature_k.get(),
                },
                Err(_) => ControllerEvent::Other(event.event()),
            },
            other => ControllerEvent::Other(other),
        })
    }

    async fn log(&self, lid: LogId) -> Outcome<Vec<u8>> {
        let len = match lid {
            LogId::SMART | LogId::FIRMWARE_SLOT => 512,
            _ => LOG_LEN,
        };
        let (data, _) = self.memory("a log of the controller", len)?;
        let mut sqe = Sqe::bare(AdminOpcode::GET_LOG_PAGE.0, NSID_BROADCAST);
        // Read, so that the controller may tell of the like again.
        GetLogFields::new(lid, 0, len).put(&mut sqe);
        let mut bytes = vec![0; len];
        match self.ask("Get Log Page", sqe, Some(&data)).await {
            Ok(_) => data.read(0, &mut bytes),
            // A vendor's, or shorter than this: what was told is true all the same.
            Err(ControllerError::Refused { status, .. }) => tracing::info!("NVMe log {lid:?}: {status:?}"),
            Err(error) => return Err(error),
        }
        Ok(bytes)
    }
}
