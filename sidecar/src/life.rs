//! A sidecar from its start to its end: what it is asked meanwhile by signals, files and the admin API.
//!
//! Not here: how it is built (`start.rs`), how it goes (`drain.rs`), the signals that end it (the commands).

use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use mesh_proto::record::Health;
use metrics::counter;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    admin::{self, Answer, COMMANDS_MAX, Command, Instance, Refusal, Target},
    clock::Clock,
    config::{self, Lease, Loaded, Service},
    drain,
    gossip::{
        keys::{KeyAnswer, KeyFault, KeyOrder},
        probe::{Drained, Gone, LEASES_MAX, LeaseRefused, Leased, WordRefused},
    },
    metrics::{Exporter, config_generation},
    start::{Sidecar, StartError},
};

/// How often the configuration's files are looked at for a change.
const FILES_LOOK: Duration = Duration::from_secs(2);

/// A sidecar with its admin API.
pub struct Life {
    /// The sidecar.
    pub sidecar: Sidecar,
    /// Its admin API.
    pub admin: admin::Serving,
    commands: mpsc::Receiver<Command>,
    path: Option<PathBuf>,
    files: Stamps,
    look: Interval,
    hangup: Signal,
    generation: u64,
    own: Option<Own>,
}

/// The application that `run` started: what its arguments say stands above the configuration, over reloads too.
#[derive(Clone, Debug)]
pub enum Own {
    /// Not offered yet, even if the configuration names it.
    Withheld(Service),
    /// Offered, as soon as its check passes.
    Offered(Service),
}

impl Own {
    /// The configuration with this application as it should be.
    pub fn amend(&self, loaded: &mut Loaded) {
        let (Own::Withheld(service) | Own::Offered(service)) = self;
        let same = |other: &Service| {
            other.service == service.service && other.instance == service.instance
        };
        loaded.config.services.retain(|other| !same(other));
        if let Own::Offered(service) = self {
            loaded.config.services.push(service.clone());
        }
    }
}

impl Life {
    /// Starts everything. `path` is what a reload reads again; `None`: there is no file, reloads are refused.
    ///
    /// # Errors
    /// What kept it from starting, and the next step.
    pub async fn start(
        path: Option<&Path>,
        loaded: Loaded,
        exporter: Exporter,
    ) -> Result<Life, StartError> {
        let hangup = signal(SignalKind::hangup()).map_err(|error| StartError {
            message: format!("cannot listen to SIGHUP: {error}"),
            next: "this is the system's fault; try again".into(),
        })?;
        let files = Stamps::of(&loaded.files);
        let settings = loaded.config.admin.clone();
        let sidecar = Sidecar::start(loaded, Clock::new()).await?;
        let (orders, commands) = mpsc::channel(COMMANDS_MAX);
        let state = admin::State {
            snapshot: Arc::clone(&sidecar.snapshot),
            ready: Arc::clone(&sidecar.ready),
            clock: sidecar.clock,
            config: sidecar.configs(),
            metrics: exporter,
            commands: orders,
        };
        let admin = admin::start(&settings, state)
            .await
            .map_err(|error| StartError {
                message: error.message,
                next: error.next,
            })?;
        let mut look = interval(FILES_LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        config_generation(1);
        let path = path.map(Path::to_path_buf);
        Ok(Life {
            sidecar,
            admin,
            commands,
            path,
            files,
            look,
            hangup,
            generation: 1,
            own: None,
        })
    }

    /// Offers or withholds the application that `run` started, from now on.
    ///
    /// # Errors
    /// What kept the configuration from being swapped; then the old one stays.
    pub async fn set_own(&mut self, own: Own) -> Result<(), StartError> {
        let mut loaded = Loaded::clone(&self.sidecar.loaded());
        own.amend(&mut loaded);
        self.own = Some(own);
        self.sidecar.reload(loaded).await
    }

    /// Does what it is asked until it is asked to leave.
    pub async fn live(&mut self) {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => self.reload_and_log().await,
                _ = self.look.tick() => if self.files.changed() {
                    self.reload_and_log().await;
                },
                command = self.commands.recv() => match command {
                    Some(Command::Leave(done)) => {
                        // Whoever asked may have gone; the order stands.
                        let _ = done.send(Ok("draining, then leaving the mesh".into()));
                        return;
                    }
                    Some(command) => self.carry_out(command).await,
                    // The admin API outlives this loop, so there is always a sender.
                    None => std::future::pending().await,
                },
            }
        }
    }

    /// Ends it after [`Sidecar::say_draining`] and whatever had to happen since; `cut` ends each wait at once.
    pub async fn close(self, cut: impl Future<Output = ()>) {
        let Life { sidecar, admin, .. } = self;
        drain::close(sidecar, false, cut).await;
        drop(admin);
    }

    /// Ends it without losing a request; `cut` ends each wait at once.
    pub async fn end(self, cut: impl Future<Output = ()>) {
        let Life { sidecar, admin, .. } = self;
        drain::end(sidecar, cut).await;
        drop(admin);
    }

    async fn carry_out(&mut self, command: Command) {
        let (answer, done) = match command {
            // Whoever asked may have gone; what was done stays done.
            Command::Keys(order, done) => return drop(done.send(self.keys(order).await)),
            Command::Connections(query, done) => {
                return drop(done.send(Ok(self.sidecar.connections(&query).await)));
            }
            Command::Drain(target, done) => (self.drain(target).await, done),
            Command::Undrain(target, done) => (self.undrain(target).await, done),
            Command::Register(lease, done) => (self.register(*lease).await, done),
            Command::Deregister(instance, done) => (self.deregister(instance).await, done),
            Command::Say(instance, health, done) => (self.say(instance, health).await, done),
            Command::Reload(done) => (self.reload().await, done),
            Command::Leave(done) => (Ok(String::new()), done),
        };
        // Whoever asked may have gone; what was done stays done.
        let _ = done.send(answer);
    }

    async fn keys(&self, order: KeyOrder) -> Result<KeyAnswer, Refusal> {
        let answer = self.sidecar.keys(order).await;
        let answer = answer.ok_or_else(|| Refusal::new("the gossip has ended", "wait for its end"));
        answer?.map_err(|fault| Refusal {
            unknown: matches!(fault, KeyFault::Unknown(_)),
            message: fault.to_string(),
            next: fault.next(),
        })
    }

    async fn drain(&self, target: Target) -> Answer {
        let drained = self
            .sidecar
            .probes
            .drain(target.service.clone(), target.instance.clone())
            .await;
        told(
            drained.map_err(|gone| gone.to_string()),
            &target,
            "draining",
        )
    }

    async fn undrain(&self, target: Target) -> Answer {
        let drained = self
            .sidecar
            .probes
            .undrain(target.service.clone(), target.instance.clone())
            .await;
        told(
            drained.map_err(|gone| gone.to_string()),
            &target,
            "back in use:",
        )
    }

    async fn register(&self, lease: Lease) -> Answer {
        let (instance, lasts) = (instance_of(&lease.service), lease.lasts);
        let leased = self.sidecar.probes.lease(lease).await.map_err(ended)?;
        let what = match leased.map_err(|refused| lease_refused(&instance, refused))? {
            Leased::New => "registered",
            Leased::Changed => "changed",
            Leased::Renewed => "renewed",
        };
        Ok(format!("{what} {instance} for {lasts:?}"))
    }

    async fn deregister(&self, instance: Instance) -> Answer {
        let key = (instance.service.clone(), instance.instance.clone());
        let released = self.sidecar.probes.release(key).await.map_err(ended)?;
        released.map_err(|refused| lease_refused(&instance, refused))?;
        Ok(format!("withdrew {instance}"))
    }

    async fn say(&self, instance: Instance, health: Health) -> Answer {
        let key = (instance.service.clone(), instance.instance.clone());
        let taken = self.sidecar.probes.say(key, health).await.map_err(ended)?;
        taken.map_err(|refused| match refused {
            WordRefused::Unknown => Refusal::unknown(
                format!("this host offers no {instance}"),
                "`starling services` lists what this host offers",
            ),
            WordRefused::Checked => Refusal::new(
                format!("how {instance} is does not go by its own word"),
                "give it check = { ttl = \"10s\" }",
            ),
        })?;
        Ok(format!("heard {instance}"))
    }

    async fn reload_and_log(&mut self) {
        match self.reload().await {
            Ok(_) => {}
            Err(refusal) => tracing::error!(
                next = refusal.next,
                "configuration refused, the old one stays in force: {}",
                refusal.message
            ),
        }
    }

    /// Reads the files again and swaps the configuration whole, or keeps the old one and says why.
    async fn reload(&mut self) -> Answer {
        let answer = self.try_reload().await;
        let result = if answer.is_ok() { "done" } else { "refused" };
        counter!("starling_config_reloads_total", "result" => result).increment(1);
        answer
    }

    async fn try_reload(&mut self) -> Answer {
        let Some(path) = &self.path else {
            let next = "start the sidecar with --config FILE to change it while it runs";
            return Err(Refusal::new("this sidecar has no configuration file", next));
        };
        let mut loaded = config::load(path).map_err(|faults| {
            self.files.look_again();
            Refusal::new(
                faults.to_string(),
                format!("starling check {}", path.display()),
            )
        })?;
        self.files = Stamps::of(&loaded.files);
        if let Some(own) = &self.own {
            own.amend(&mut loaded);
        }
        self.sidecar
            .reload(loaded)
            .await
            .map_err(|error| Refusal::new(error.message, error.next))?;
        self.generation += 1;
        config_generation(self.generation);
        tracing::info!(path = %path.display(), generation = self.generation, "configuration reloaded");
        Ok(format!("configuration {} is in force", self.generation))
    }

    /// Whether it serves and is part of the mesh.
    pub fn is_ready(&self) -> bool {
        self.sidecar.ready.load(Ordering::Relaxed)
    }
}

fn instance_of(service: &Service) -> Instance {
    Instance {
        service: service.service.clone(),
        instance: service.instance.clone(),
    }
}

fn ended(gone: Gone) -> Refusal {
    Refusal::new(gone.to_string(), "wait for its end")
}

fn lease_refused(instance: &Instance, refused: LeaseRefused) -> Refusal {
    match refused {
        LeaseRefused::Configured => Refusal::new(
            format!("the configuration offers {instance}, and stands above what is registered"),
            "register under another instance name, or change the configuration",
        ),
        LeaseRefused::Full => Refusal::new(
            format!("{LEASES_MAX} instances are registered here already"),
            "take some back, or write those that stay into the configuration",
        ),
        LeaseRefused::Unknown => Refusal::unknown(
            format!("nobody has registered {instance} here"),
            "its lease may be over; `starling services` lists what this host offers",
        ),
    }
}

fn told(drained: Result<Drained, String>, target: &Target, what: &str) -> Answer {
    let drained = drained.map_err(|error| Refusal::new(error, "wait for its end"))?;
    if drained.instances.is_empty() && target.service.is_some() {
        let service = target.service.as_deref().unwrap_or_default();
        let instance = target
            .instance
            .as_deref()
            .map(|name| format!("/{name}"))
            .unwrap_or_default();
        let next = "`starling services` lists what this host offers";
        return Err(Refusal::unknown(
            format!("this host offers no {service}{instance}"),
            next,
        ));
    }
    let names: Vec<String> = drained
        .instances
        .iter()
        .map(|(service, instance)| format!("{service}/{instance}"))
        .collect();
    let mut words = format!(
        "{what} {}",
        if names.is_empty() {
            "nothing".into()
        } else {
            names.join(", ")
        }
    );
    if let Some(why) = drained.not_kept {
        words.push_str(&format!("; a restart forgets it: {why}"));
    }
    Ok(words)
}

/// When each file of the configuration was last changed.
struct Stamps {
    seen: BTreeMap<PathBuf, Option<SystemTime>>,
}

impl Stamps {
    fn of(files: &[PathBuf]) -> Stamps {
        Stamps {
            seen: files
                .iter()
                .map(|file| (file.clone(), stamp(file)))
                .collect(),
        }
    }

    fn changed(&self) -> bool {
        self.seen.iter().any(|(file, seen)| stamp(file) != *seen)
    }

    /// Takes the files as seen, so that a faulty one is told of once.
    fn look_again(&mut self) {
        for (file, seen) in &mut self.seen {
            *seen = stamp(file);
        }
    }
}

fn stamp(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file)
        .and_then(|meta| meta.modified())
        .ok()
}
