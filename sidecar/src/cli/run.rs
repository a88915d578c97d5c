//! `starling run … -- ./app`: a sidecar and its application together, from the first check to the last request.
//!
//! Not here: how each of them goes (`drain.rs`, `run/application.rs`).

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus},
    sync::Arc,
    time::Duration,
};

use mesh_core::mesh::Mesh;
use mesh_proto::record::WireProtocol;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Ended, Exit, Failure,
    agent::{Ends, cannot_start, control_runtime},
};
use crate::{
    config::{self, Check, CheckKind, Config, HttpCheck, Service},
    life::{Life, Own},
    logs,
    metrics::Exporter,
};

use application::{Application, exit_code};

mod application;

/// How long the application's start waits for the mesh; a mesh that is away must not keep it down.
const MESH_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long an application may take to be gone after SIGKILL: the kernel's work, not its own.
const KILL_WAIT_MAX: Duration = Duration::from_secs(5);

/// The arguments of `run`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Waits for the mesh, starts the application, and announces it once its check passes. SIGTERM or SIGINT: callers are
asked to go elsewhere first, then the application gets SIGTERM, and its own calls work until it has gone. Exits with
the application's code. The application runs in a process group of its own.

Examples:
  starling run --service web --port 8080 --check /healthz -- ./app --verbose
  starling run --service web --config /etc/starling/starling.toml -- ./app    # [service.web] says the rest")]
pub struct Args {
    /// The service that the application is an instance of
    #[arg(long, value_name = "NAME")]
    service: String,
    /// The port it listens on; may stand in the configuration's [service.NAME] instead
    #[arg(long)]
    port: Option<u16>,
    /// The path that answers 200-399 when it is well; without one, a connection that is accepted will do
    #[arg(long, value_name = "PATH")]
    check: Option<String>,
    /// The sidecar's configuration; without one, /etc/starling/starling.toml if there is one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The application and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) fn run(args: &Args) -> Ended {
    logs::start();
    let usual = Path::new(config::PATH);
    let file = match &args.config {
        Some(file) => Some(file.as_path()),
        None => usual.exists().then_some(usual),
    };
    let loaded = match file {
        Some(file) => config::load(file)?,
        None => {
            tracing::warn!(
                "no {}: this sidecar is alone on loopback; --config FILE joins a mesh",
                config::PATH
            );
            config::parse("the defaults", "")?
        }
    };
    let service = service(args, &loaded.config)?;
    let exporter = Exporter::install().map_err(cannot_start)?;
    control_runtime()?.block_on(async {
        let mut ends = Ends::new().map_err(cannot_start)?;
        let withheld = Own::Withheld(service.clone());
        let mut loaded = loaded;
        withheld.amend(&mut loaded);
        let mut life = Life::start(file, loaded, exporter).await?;
        life.set_own(withheld).await?;
        together(life, service, &args.command, &mut ends).await
    })
}

/// The application as a service: what the configuration says of it, under what the arguments say.
fn service(args: &Args, config: &Config) -> Result<Service, Failure> {
    let known = config
        .services
        .iter()
        .find(|known| *known.service == args.service);
    let mut service = match (known, args.port) {
        (Some(known), port) => {
            let mut service = known.clone();
            if let Some(port) = port {
                service.address.set_port(port);
                service.advertise.set_port(port);
            }
            service
        }
        (None, Some(port)) => of_arguments(&args.service, port, config)?,
        (None, None) => {
            return Err(Failure::new(
                Exit::Usage,
                format!(
                    "nobody says where the application of {} listens",
                    args.service
                ),
                format!(
                    "add --port, or a table [service.{}] to the configuration",
                    args.service
                ),
            ));
        }
    };
    let kind = match (&args.check, &service.check) {
        (None, Some(_)) => return Ok(service),
        (Some(path), _) if path.starts_with('/') => CheckKind::Http(HttpCheck::get(path)),
        (Some(path), _) => {
            return Err(Failure::new(
                Exit::Usage,
                format!("--check {path}: a path starts with /"),
                format!("--check /{path}"),
            ));
        }
        // Announced before it listens, it would lose its first callers: so an own application is always checked.
        (None, None) => CheckKind::Tcp,
    };
    let timings = service.check.take();
    let timings = timings.unwrap_or_else(|| Check::of(CheckKind::Tcp));
    service.check = Some(Check { kind, ..timings });
    Ok(service)
}

/// A service as a table with nothing but a port would make it, on this host's address.
fn of_arguments(name: &str, port: u16, config: &Config) -> Result<Service, Failure> {
    let text = format!("[service.{}]\nport = {port}\n", config::quote(name));
    let services = config::parse("the arguments", &text)?.config.services;
    let Some(mut service) = services.into_iter().next() else {
        let message = format!("--service {name} --port {port} make no service");
        return Err(Failure::new(Exit::Usage, message, ""));
    };
    service.address.set_ip(config.node.advertise);
    service.advertise.set_ip(config.node.advertise);
    service.instance = format!("{}-{port}", config.node.id).into();
    service.protocol = WireProtocol::Http;
    Ok(service)
}

async fn together(
    mut life: Life,
    service: Service,
    command: &[OsString],
    ends: &mut Ends,
) -> Ended {
    let mesh = life.sidecar.gossip.mesh.clone();
    tokio::select! {
        () = joined(mesh) => {}
        () = life.live() => {
            life.end(ends.next()).await;
            return Ok(ExitCode::SUCCESS);
        }
        () = ends.next() => {
            life.end(ends.next()).await;
            return Ok(ExitCode::SUCCESS);
        }
    }
    let mut application = match Application::start(command) {
        Ok(application) => application,
        Err(error) => {
            life.end(std::future::ready(())).await;
            let program = command.first().map(|program| program.display().to_string());
            return Err(Failure::new(
                Exit::Failed,
                format!("cannot start {}: {error}", program.unwrap_or_default()),
                "name a program that can be run after --",
            ));
        }
    };
    if let Err(refused) = life.set_own(Own::Offered(service)).await {
        drop(application);
        life.end(std::future::ready(())).await;
        return Err(refused.into());
    }
    let status = tokio::select! {
        status = application.ended() => {
            tracing::warn!(?status, "the application ended by itself");
            life.end(std::future::ready(())).await;
            status
        }
        () = life.live() => stop(life, &mut application, ends).await,
        () = ends.next() => stop(life, &mut application, ends).await,
    };
    let unknown = |error| {
        Failure::new(
            Exit::Failed,
            format!("the application's end is not known: {error}"),
            "",
        )
    };
    status.map(exit_code).map_err(unknown)
}

/// Callers go elsewhere first, then the application goes, then the sidecar.
async fn stop(
    life: Life,
    application: &mut Application,
    ends: &mut Ends,
) -> io::Result<ExitStatus> {
    let rules = life.sidecar.loaded().config.drain;
    tracing::info!(grace = ?rules.grace, "asking callers to go elsewhere, then the application to end");
    life.sidecar.say_draining().await;
    let hasty = tokio::select! {
        () = sleep(rules.grace) => false,
        () = ends.next() => true,
        // Gone before it was asked: there is nobody to wait for.
        _ = application.ended() => false,
    };
    application.ask_to_end();
    let in_time = tokio::select! {
        ended = timeout(rules.timeout, application.ended()), if !hasty => ended.is_ok(),
        () = ends.next(), if !hasty => false,
        else => false,
    };
    if !in_time {
        tracing::warn!("the application did not end in time: killing it");
    }
    // What it left behind in its group goes with it.
    application.kill();
    let status = timeout(KILL_WAIT_MAX, application.ended()).await;
    life.close(ends.next()).await;
    status.map_err(io::Error::from).flatten()
}

/// Returns when a first exchange with a peer is done or there is nobody to join; at the latest after a while.
async fn joined(mut mesh: watch::Receiver<Arc<Mesh>>) {
    match timeout(MESH_WAIT_MAX, mesh.wait_for(|mesh| mesh.joined)).await {
        Ok(Ok(_)) => {}
        Ok(Err(_)) => {
            tracing::warn!("the gossip has ended; starting the application without a mesh")
        }
        Err(_) => tracing::warn!(
            waited = ?MESH_WAIT_MAX,
            "no peer answers; starting the application, joining goes on"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &[&str]) -> Args {
        use clap::Parser;
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        Line::try_parse_from(std::iter::once(&"run").chain(text))
            .unwrap()
            .args
    }

    fn config(text: &str) -> Config {
        config::parse("test", text).unwrap().config
    }

    #[test]
    fn arguments_alone_make_a_service_that_is_checked() {
        let config = config("[node]\nid = \"host-1\"\n");
        let args = args(&["--service", "web", "--port", "8080", "--", "./app", "-v"]);
        let service = service(&args, &config).unwrap();
        assert_eq!(
            (&*service.service, &*service.instance),
            ("web", "host-1-8080")
        );
        assert_eq!(service.address, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(service.check.unwrap().kind, CheckKind::Tcp);
        assert_eq!(args.command, ["./app", "-v"]);
    }

    #[test]
    fn a_table_of_the_configuration_says_what_the_arguments_do_not() {
        let config = config(
            "[service.web]\nport = 9000\nweight = 7\ncheck = { http = \"/ok\", fall = 9 }\n",
        );
        let plain = service(&args(&["--service", "web", "--", "./app"]), &config).unwrap();
        assert_eq!(plain, config.services[0]);
        let over = args(&[
            "--service",
            "web",
            "--port",
            "9001",
            "--check",
            "/up",
            "--",
            "./app",
        ]);
        let over = service(&over, &config).unwrap();
        assert_eq!((over.address.port(), over.weight.get()), (9001, 7));
        let check = over.check.unwrap();
        assert_eq!(
            (check.kind, check.fall),
            (CheckKind::Http(HttpCheck::get("/up")), 9)
        );
    }

    #[test]
    fn what_cannot_be_a_service_is_told_with_a_way_out() {
        let config = config("");
        for (line, expected) in [
            (&["--service", "web", "--", "./app"][..], "--port"),
            (
                &[
                    "--service",
                    "web",
                    "--port",
                    "1",
                    "--check",
                    "up",
                    "--",
                    "./app",
                ],
                "--check /up",
            ),
            (
                &["--service", "Not a name", "--port", "1", "--", "./app"],
                "Not a name",
            ),
        ] {
            let failure = service(&args(line), &config).unwrap_err();
            assert!(failure.to_string().contains(expected), "{failure}");
        }
    }
}
