//! Our certificate, their name: rustls set up from files of the configuration.
//!
//! Not here: which listener or upstream has it (`config/check/tls.rs`), and handshakes (`proxy/dial.rs`,
//! `proxy/listen.rs`). A changed file is a changed configuration: it is read whole and swapped whole, and connections
//! go on with what they began with.

use std::{fs, io, path::Path, path::PathBuf, sync::Arc};

use ring::digest::{Context, SHA256};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    client::WebPkiServerVerifier,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, pem::PemObject,
    },
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};

/// Largest PEM file that is read: the bundle of all public authorities has about 230 KiB.
pub const PEM_BYTES_MAX: u64 = 4 << 20;

/// What is spoken inside TLS, in the order of preference (RFC 7301).
const ALPN_H2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";

/// The oldest version of TLS that is spoken.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum Oldest {
    /// TLS 1.2, with its forward-secret suites only.
    Tls12,
    /// TLS 1.3.
    #[default]
    Tls13,
}

impl Oldest {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self {
            Oldest::Tls12 => &BOTH,
            Oldest::Tls13 => &BOTH[..1],
        }
    }
}

/// Which HTTP is offered inside TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inside {
    /// HTTP/2, or HTTP/1.1 if the other side would rather.
    EitherHttp,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Any bytes: nothing is said of them.
    Bytes,
}

impl Inside {
    fn alpn(self) -> Vec<Vec<u8>> {
        let offered: &[&[u8]] = match self {
            Inside::EitherHttp => &[ALPN_H2, ALPN_HTTP1],
            Inside::Http1 => &[ALPN_HTTP1],
            Inside::Http2 => &[ALPN_H2],
            Inside::Bytes => &[],
        };
        offered.iter().map(|name| name.to_vec()).collect()
    }
}

/// Files that a certificate and its key are read from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The chain, our certificate first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What a listener's TLS is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerFiles {
    /// Whom we say we are.
    pub identity: Identity,
    /// Authorities of client certificates; a client without one of theirs is refused.
    pub client_ca: Option<PathBuf>,
    /// Certificates taken back by those authorities.
    pub crl: Option<PathBuf>,
    /// The oldest version.
    pub oldest: Oldest,
}

/// What TLS towards endpoints is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientFiles {
    /// Authorities of the endpoints' certificates.
    pub ca: PathBuf,
    /// The name their certificates must have; `None`: each one's own address.
    pub server_name: Option<ServerName<'static>>,
    /// Whom we say we are, if they ask.
    pub identity: Option<Identity>,
    /// The oldest version.
    pub oldest: Oldest,
}

/// What is wrong with a file, and which key of the configuration names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFault {
    /// `cert`, `key`, `ca`, `client_ca` or `crl`.
    pub key: &'static str,
    /// What is wrong.
    pub what: String,
    /// The next step.
    pub fix: String,
}

/// TLS of one listener, ready to shake hands. Two are equal if they were made of the same bytes.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// For rustls.
    pub config: Arc<ServerConfig>,
    made_of: [u8; 32],
}

/// TLS towards the endpoints of one upstream. Two are equal if they were made of the same bytes.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// For rustls.
    pub config: Arc<ClientConfig>,
    /// The same, but offering HTTP/1.1 alone: only there a connection can be upgraded.
    http1: Arc<ClientConfig>,
    /// The same, but offering HTTP/2 alone.
    http2: Arc<ClientConfig>,
    /// The name the endpoints' certificates must have; `None`: each one's own address.
    pub server_name: Option<ServerName<'static>>,
    made_of: [u8; 32],
}

impl PartialEq for ServerTls {
    fn eq(&self, other: &ServerTls) -> bool {
        self.made_of == other.made_of
    }
}

impl Eq for ServerTls {}

impl PartialEq for ClientTls {
    fn eq(&self, other: &ClientTls) -> bool {
        self.made_of == other.made_of && self.server_name == other.server_name
    }
}

impl Eq for ClientTls {}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// A file that cannot be read, holds nothing of what it should, or a key that is not the certificate's.
    pub fn load(files: &ServerFiles, inside: Inside) -> Result<ServerTls, TlsFault> {
        let mut read = Reader::default();
        let (chain, key) = read.identity(&files.identity)?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(files.oldest.versions())
            .map_err(|error| no_version(&error))?;
        let builder = match &files.client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let roots = Arc::new(read.roots("client_ca", ca)?);
                let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                if let Some(crl) = &files.crl {
                    verifier = verifier.with_crls(read.revoked(crl)?);
                }
                builder.with_client_cert_verifier(verifier.build().map_err(|error| TlsFault {
                    key: "client_ca",
                    what: format!("no client can be checked by it: {error}"),
                    fix: "name a PEM file of the authorities that sign client certificates".into(),
                })?)
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| no_pair(&files.identity, &error))?;
        config.alpn_protocols = inside.alpn();
        read.mark(&[inside as u8, files.oldest as u8]);
        Ok(ServerTls {
            config: Arc::new(config),
            made_of: read.digest(),
        })
    }
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// As [`ServerTls::load`].
    pub fn load(files: &ClientFiles, inside: Inside) -> Result<ClientTls, TlsFault> {
        let mut read = Reader::default();
        let roots = Arc::new(read.roots("ca", &files.ca)?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| TlsFault {
                key: "ca",
                what: format!("no endpoint can be checked by it: {error}"),
                fix: "name a PEM file of the authorities that sign the endpoints' certificates"
                    .into(),
            })?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(files.oldest.versions())
            .map_err(|error| no_version(&error))?
            .with_webpki_verifier(verifier);
        let mut config = match &files.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = read.identity(identity)?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| no_pair(identity, &error))?
            }
        };
        config.alpn_protocols = inside.alpn();
        let offering = |inside: Inside| {
            let mut config = config.clone();
            config.alpn_protocols = inside.alpn();
            Arc::new(config)
        };
        let (http1, http2) = (offering(Inside::Http1), offering(Inside::Http2));
        read.mark(&[inside as u8, files.oldest as u8]);
        Ok(ClientTls {
            config: Arc::new(config),
            http1,
            http2,
            server_name: files.server_name.clone(),
            made_of: read.digest(),
        })
    }
}

impl ClientTls {
    /// The same, but speaking HTTP/1.1 inside whatever the endpoint would rather.
    pub fn speaking_http1(mut self) -> ClientTls {
        self.config = Arc::clone(&self.http1);
        self
    }

    /// The same, but speaking HTTP/2 inside.
    pub fn speaking_http2(mut self) -> ClientTls {
        self.config = Arc::clone(&self.http2);
        self
    }
}

fn no_version(error: &rustls::Error) -> TlsFault {
    TlsFault {
        key: "min_version",
        what: format!("no suite of ciphers is left: {error}"),
        fix: "drop the line".into(),
    }
}

fn no_pair(identity: &Identity, error: &rustls::Error) -> TlsFault {
    TlsFault {
        key: "key",
        what: format!("{} and {} do not serve together: {error}", identity.cert.display(), identity.key.display()),
        fix: "name the private key that the certificate was made for; openssl x509 -noout -pubkey and openssl pkey -pubout must say the same".into(),
    }
}

/// Reads PEM files and remembers what they held.
struct Reader {
    digest: Context,
}

impl Default for Reader {
    fn default() -> Reader {
        Reader {
            digest: Context::new(&SHA256),
        }
    }
}

impl Reader {
    fn bytes(&mut self, key: &'static str, path: &Path) -> Result<Vec<u8>, TlsFault> {
        let shown = path.display();
        let fault = |what: String, fix: &str| TlsFault {
            key,
            what,
            fix: fix.into(),
        };
        let size = fs::metadata(path).map(|meta| meta.len());
        if matches!(size, Ok(size) if size > PEM_BYTES_MAX) {
            return Err(fault(
                format!("{shown} is larger than {} MiB", PEM_BYTES_MAX >> 20),
                "name a PEM file",
            ));
        }
        let bytes = fs::read(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => fault(
                format!("there is no file {shown}"),
                "create it, or name another one",
            ),
            _ => fault(
                format!("{shown} cannot be read: {error}"),
                "let the sidecar's user read it",
            ),
        })?;
        self.mark(&bytes);
        Ok(bytes)
    }

    fn mark(&mut self, bytes: &[u8]) {
        self.digest.update(&(bytes.len() as u64).to_be_bytes());
        self.digest.update(bytes);
    }

    fn digest(self) -> [u8; 32] {
        let mut digest = [0; 32];
        digest.copy_from_slice(self.digest.finish().as_ref());
        digest
    }

    fn certificates(
        &mut self,
        key: &'static str,
        path: &Path,
    ) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
        let bytes = self.bytes(key, path)?;
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        match read {
            Ok(certificates) if !certificates.is_empty() => Ok(certificates),
            _ => Err(no_pem(key, path, "CERTIFICATE")),
        }
    }

    fn identity(
        &mut self,
        identity: &Identity,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsFault> {
        let chain = self.certificates("cert", &identity.cert)?;
        let bytes = self.bytes("key", &identity.key)?;
        let key = PrivateKeyDer::from_pem_slice(&bytes)
            .map_err(|_| no_pem("key", &identity.key, "PRIVATE KEY"))?;
        Ok((chain, key))
    }

    fn roots(&mut self, key: &'static str, path: &Path) -> Result<RootCertStore, TlsFault> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(key, path)? {
            roots.add(certificate).map_err(|error| TlsFault {
                key,
                what: format!(
                    "{} holds a certificate that cannot be an authority: {error}",
                    path.display()
                ),
                fix: "name a PEM file of authorities alone".into(),
            })?;
        }
        Ok(roots)
    }

    fn revoked(
        &mut self,
        path: &Path,
    ) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsFault> {
        let bytes = self.bytes("crl", path)?;
        let read: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
        match read {
            Ok(lists) if !lists.is_empty() => Ok(lists),
            _ => Err(no_pem("crl", path, "X509 CRL")),
        }
    }
}

fn no_pem(key: &'static str, path: &Path, label: &str) -> TlsFault {
    TlsFault {
        key,
        what: format!(
            "{} holds no -----BEGIN {label}----- that can be read",
            path.display()
        ),
        fix: "name a PEM file; openssl can turn DER and PKCS#12 into PEM".into(),
    }
}

/// The address of an endpoint as a name that its certificate may have.
pub fn name_of(address: std::net::IpAddr) -> ServerName<'static> {
    ServerName::IpAddress(address.into())
}

#[cfg(test)]
pub(crate) mod tests;
