//! TLS for connections to peers, with libpq's meaning of `sslmode`. Without a root certificate a
//! connection is encrypted and nobody asks who answers; with one the server's certificate must come
//! from its authority, and for `verify-full` also be made out to the host.

use std::path::Path;
use std::sync::Arc;

use chrono::DateTime;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::credentials;
use crate::node::peer::{Identity, SslMode, Tls};

/// Reads the certificates and makes what connects with them. The error is for an administrator.
pub fn connector(tls: &Tls) -> Result<MakeRustlsConnect, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|failure| failure.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier(tls, provider)?);
    let config = match &tls.identity {
        Some(identity) if tls.mode != SslMode::Disable => {
            let (certificates, key) = read_identity(identity)?;
            builder
                .with_client_auth_cert(certificates, key)
                .map_err(|failure| refused_identity(identity, &failure))?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(MakeRustlsConnect::new(config))
}

fn verifier(
    tls: &Tls,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, String> {
    let file = match (&tls.root_certificate, tls.mode) {
        (_, SslMode::Disable) | (None, SslMode::Prefer | SslMode::Require) => {
            return Ok(Arc::new(AnyCertificate { provider }));
        }
        (None, SslMode::VerifyCa | SslMode::VerifyFull) => {
            return Err("there is no sslrootcert to check the certificate against".into());
        }
        (Some(file), _) => file,
    };
    let roots = Arc::new(read_roots(file)?);
    let chain = WebPkiServerVerifier::builder_with_provider(roots, provider)
        .build()
        .map_err(|failure| credentials::refused("sslrootcert", file, &failure.to_string()))?;
    match tls.mode {
        SslMode::VerifyFull => Ok(chain),
        _ => Ok(Arc::new(AnyName { chain })),
    }
}

fn read_roots(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates("sslrootcert", file)? {
        roots.add(certificate).map_err(|_| {
            credentials::refused("sslrootcert", file, "a certificate in it is malformed")
        })?;
    }
    Ok(roots)
}

fn read_identity(
    identity: &Identity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let certificates = read_certificates("sslcert", &identity.certificate)?;
    let key =
        PrivateKeyDer::from_pem_slice(&credentials::read_key(&identity.key)?).map_err(|_| {
            // The reader's own words would quote the file.
            credentials::refused(
                "sslkey",
                &identity.key,
                "there is no private key in PEM form without a passphrase in it",
            )
        })?;
    Ok((certificates, key))
}

fn read_certificates(option: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = credentials::read_public(option, file)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|_| credentials::refused(option, file, "it is not in PEM form"))?;
    if certificates.is_empty() {
        return Err(credentials::refused(
            option,
            file,
            "there is no certificate in PEM form in it",
        ));
    }
    Ok(certificates)
}

/// Which of the two files is at fault, and why.
fn refused_identity(identity: &Identity, failure: &Error) -> String {
    let of_certificate =
        |reason: &str| credentials::refused("sslcert", &identity.certificate, reason);
    match failure {
        Error::InconsistentKeys(_) => credentials::refused(
            "sslkey",
            &identity.key,
            "it is not the key of the certificate in sslcert",
        ),
        Error::InvalidCertificate(refused) => of_certificate(&certificate_reason(refused)),
        other => credentials::refused("sslkey", &identity.key, &other.to_string()),
    }
}

/// What the TLS library found wrong, in words for an administrator; nothing when the error is not
/// of it.
pub fn reason(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let failure = error.downcast_ref::<std::io::Error>()?.get_ref()?;
    let failure = failure.downcast_ref::<Error>()?;
    Some(match failure {
        Error::InvalidCertificate(refused) => {
            format!(
                "server certificate refused: {}",
                certificate_reason(refused)
            )
        }
        Error::AlertReceived(alert) => format!("refused by the server: TLS alert {alert:?}"),
        other => other.to_string(),
    })
}

fn certificate_reason(refused: &CertificateError) -> String {
    match refused {
        CertificateError::ExpiredContext { not_after, .. } => {
            format!(
                "certificate expired: it was valid until {}",
                utc(*not_after)
            )
        }
        CertificateError::NotValidYetContext { not_before, .. } => format!(
            "certificate not valid yet: it will be from {}",
            utc(*not_before)
        ),
        CertificateError::UnknownIssuer => {
            "unknown issuer: it was not issued by an authority in sslrootcert".into()
        }
        CertificateError::Other(other) => match other.to_string().as_str() {
            "UnsupportedCertVersion" => "it is not an X.509 certificate of version 3".into(),
            "CaUsedAsEndEntity" => {
                "it is the certificate of an authority (CA:TRUE), not of a server".into()
            }
            reason => reason.to_owned(),
        },
        other => other.to_string(),
    }
}

fn utc(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| DateTime::from_timestamp(seconds, 0))
        .map_or_else(
            || "a time far away".into(),
            |time| time.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
        )
}

/// Accepts any certificate, but checks that the peer holds its key.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Checks where a certificate comes from and its dates, not whom it was made out to.
#[derive(Debug)]
struct AnyName {
    chain: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict = self.chain.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verdict {
            // The name is looked at last, so all the rest was right.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;

    fn said(failure: Error) -> String {
        reason(&io::Error::new(io::ErrorKind::InvalidData, failure)).unwrap()
    }

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn a_refused_certificate_has_a_reason() {
        let expired = CertificateError::ExpiredContext {
            time: at(1_000_000_001),
            not_after: at(1_000_000_000),
        };
        assert_eq!(
            said(expired.into()),
            "server certificate refused: certificate expired: it was valid until 2001-09-09 01:46:40 UTC"
        );
        let early = CertificateError::NotValidYetContext {
            time: at(1),
            not_before: at(u64::MAX),
        };
        assert!(said(early.into()).contains("not valid yet"));
        assert!(said(CertificateError::UnknownIssuer.into()).contains("unknown issuer"));
        let misnamed = CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("db-b").unwrap(),
            presented: vec!["DnsName(\"other\")".into()],
        };
        let misnamed = said(misnamed.into());
        assert!(
            misnamed.contains("\"db-b\"") && misnamed.contains("other"),
            "{misnamed}"
        );
        assert!(reason(&io::Error::other("anything else")).is_none());
    }

    fn refusal(tls: &Tls) -> String {
        connector(tls).err().unwrap()
    }

    fn tls(mode: SslMode, root: Option<&str>, certificate: Option<&str>) -> Tls {
        Tls {
            mode,
            root_certificate: root.map(PathBuf::from),
            identity: certificate.map(|file| Identity {
                certificate: file.into(),
                key: file.into(),
            }),
        }
    }

    #[test]
    fn files_without_certificates_are_refused() {
        let missing = tls(SslMode::VerifyCa, Some("/nonexistent/ca"), None);
        assert!(
            refusal(&missing).starts_with("could not use sslrootcert file \"/nonexistent/ca\"")
        );
        let missing = tls(SslMode::Require, None, Some("/nonexistent/crt"));
        assert!(refusal(&missing).starts_with("could not use sslcert file"));
        let wrong = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let empty = tls(SslMode::Prefer, Some(wrong), None);
        assert!(refusal(&empty).ends_with("there is no certificate in PEM form in it"));
    }

    #[test]
    fn nothing_is_read_without_encryption() {
        let files = Some("/nonexistent/file");
        assert!(connector(&tls(SslMode::Disable, files, files)).is_ok());
    }
}
