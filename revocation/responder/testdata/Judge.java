// Judge checks OCSP responses and CRLs with Java's own code and with Bouncy Castle. Each line on standard input is a
// request: words separated by tabs. For each request, Judge writes one line to standard output.

import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.net.HttpURLConnection;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.SecureRandom;
import java.security.Security;
import java.security.cert.*;
import java.util.*;
import org.bouncycastle.asn1.ASN1ObjectIdentifier;
import org.bouncycastle.asn1.DEROctetString;
import org.bouncycastle.asn1.ocsp.OCSPObjectIdentifiers;
import org.bouncycastle.asn1.x509.AlgorithmIdentifier;
import org.bouncycastle.asn1.x509.CRLReason;
import org.bouncycastle.asn1.x509.ExtensionsGenerator;
import org.bouncycastle.asn1.x509.KeyPurposeId;
import org.bouncycastle.asn1.x509.ExtendedKeyUsage;
import org.bouncycastle.cert.X509CRLEntryHolder;
import org.bouncycastle.cert.X509CRLHolder;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.cert.jcajce.JcaX509CertificateHolder;
import org.bouncycastle.cert.ocsp.*;
import org.bouncycastle.jcajce.PKIXExtendedParameters;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.operator.jcajce.JcaContentVerifierProviderBuilder;
import org.bouncycastle.operator.jcajce.JcaDigestCalculatorProviderBuilder;

public class Judge {
  static final CertificateFactory X509;

  static {
    Security.addProvider(new BouncyCastleProvider());
    System.setProperty("com.sun.security.enableCRLDP", "true");
    try {
      X509 = CertificateFactory.getInstance("X.509");
    } catch (CertificateException e) {
      throw new ExceptionInInitializerError(e);
    }
  }

  public static void main(String[] args) throws Exception {
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
    for (String line = in.readLine(); line != null; line = in.readLine()) {
      String answer;
      try {
        answer = answer(line.split("\t"));
      } catch (CertPathValidatorException e) {
        answer = reason(e);
      } catch (Exception e) {
        answer = "error " + e;
      }
      System.out.println(answer.replace('\n', ' '));
      System.out.flush();
    }
  }

  static String answer(String[] q) throws Exception {
    switch (q[0]) {
      case "ocsp": // leaf, issuer, root, responder, "nonce" or "plain"
        return ocsp(q[1], q[2], q[3], q[4], q[5].equals("nonce"));
      case "points": // leaf, issuer, root: CRLs from the URL in the certificate
        return path("SUN", q[1], q[2], q[3], checker());
      case "crls": // SUN, BC, or BC with deltas; leaf, issuer, root, CRLs
        return crls(q);
      case "bc-ocsp": // leaf, issuer, responder, SHA-1 or SHA-256, "nonce" or "plain"
        return bcOCSP(q[1], q[2], q[3], q[4], q[5].equals("nonce"));
      case "bc-crl": // CRL, issuer, leaf
        return bcCRL(q[1], q[2], q[3]);
      default:
        return "error no such question";
    }
  }

  static X509Certificate certificate(String file) throws Exception {
    try (FileInputStream in = new FileInputStream(file)) {
      return (X509Certificate) X509.generateCertificate(in);
    }
  }

  static String reason(CertPathValidatorException e) {
    if (e.getCause() instanceof CertificateRevokedException) {
      return "revoked " + ((CertificateRevokedException) e.getCause()).getRevocationReason();
    }
    return "refused " + e.getReason() + " " + e.getMessage();
  }

  static PKIXRevocationChecker checker(PKIXRevocationChecker.Option... more) throws Exception {
    PKIXRevocationChecker c = (PKIXRevocationChecker) CertPathValidator.getInstance("PKIX", "SUN").getRevocationChecker();
    Set<PKIXRevocationChecker.Option> options = new HashSet<>(Arrays.asList(more));
    options.add(PKIXRevocationChecker.Option.ONLY_END_ENTITY);
    options.add(PKIXRevocationChecker.Option.NO_FALLBACK);
    if (more.length == 0) {
      options.add(PKIXRevocationChecker.Option.PREFER_CRLS);
    }
    options.remove(null);
    c.setOptions(options);
    return c;
  }

  static String path(String provider, String leaf, String issuer, String root, PKIXRevocationChecker checker) throws Exception {
    PKIXParameters p = new PKIXParameters(Set.of(new TrustAnchor(certificate(root), null)));
    p.addCertPathChecker(checker);
    CertPath path = X509.generateCertPath(List.of(certificate(leaf), certificate(issuer)));
    CertPathValidator.getInstance("PKIX", provider).validate(path, p);
    return "good";
  }

  static String ocsp(String leaf, String issuer, String root, String responder, boolean withNonce) throws Exception {
    PKIXRevocationChecker c = checker((PKIXRevocationChecker.Option) null);
    c.setOcspResponder(URI.create(responder));
    if (withNonce) {
      byte[] nonce = new byte[32];
      new SecureRandom().nextBytes(nonce);
      byte[] value = new DEROctetString(nonce).getEncoded();
      c.setOcspExtensions(List.of(new Extension() {
        public String getId() {
          return "1.3.6.1.5.5.7.48.1.2";
        }

        public boolean isCritical() {
          return false;
        }

        public byte[] getValue() {
          return value;
        }

        public void encode(OutputStream out) throws java.io.IOException {
          out.write(new org.bouncycastle.asn1.x509.Extension(new ASN1ObjectIdentifier(getId()), false, value).getEncoded());
        }
      }));
    }
    return path("SUN", leaf, issuer, root, c);
  }

  static String crls(String[] q) throws Exception {
    List<CRL> lists = new ArrayList<>();
    for (int n = 5; n < q.length; n++) {
      try (FileInputStream in = new FileInputStream(q[n])) {
        lists.add(X509.generateCRL(in));
      }
    }
    CertStore store = CertStore.getInstance("Collection", new CollectionCertStoreParameters(lists));
    PKIXParameters p = new PKIXParameters(Set.of(new TrustAnchor(certificate(q[4]), null)));
    p.addCertStore(store);
    p.setRevocationEnabled(true);
    CertPath path = X509.generateCertPath(List.of(certificate(q[2]), certificate(q[3])));
    if (q[1].equals("SUN")) {
      p.setRevocationEnabled(false);
      p.addCertPathChecker(checker());
    }
    if (q[1].equals("BC with deltas")) {
      PKIXExtendedParameters more = new PKIXExtendedParameters.Builder(p).setUseDeltasEnabled(true).build();
      CertPathValidator.getInstance("PKIX", "BC").validate(path, more);
      return "good";
    }
    CertPathValidator.getInstance("PKIX", q[1]).validate(path, p);
    return "good";
  }

  static String bcOCSP(String leaf, String issuer, String responder, String hash, boolean withNonce) throws Exception {
    X509CertificateHolder ca = new JcaX509CertificateHolder(certificate(issuer));
    ASN1ObjectIdentifier oid = hash.equals("SHA-1") ? CertificateID.HASH_SHA1.getAlgorithm()
        : org.bouncycastle.asn1.nist.NISTObjectIdentifiers.id_sha256;
    CertificateID id = new CertificateID(
        new JcaDigestCalculatorProviderBuilder().build().get(new AlgorithmIdentifier(oid)), ca, certificate(leaf).getSerialNumber());
    OCSPReqBuilder builder = new OCSPReqBuilder().addRequest(id);
    byte[] nonce = new byte[32];
    new SecureRandom().nextBytes(nonce);
    if (withNonce) {
      ExtensionsGenerator extensions = new ExtensionsGenerator();
      extensions.addExtension(OCSPObjectIdentifiers.id_pkix_ocsp_nonce, false, new DEROctetString(nonce));
      builder.setRequestExtensions(extensions.generate());
    }
    OCSPResp resp = new OCSPResp(post(responder, builder.build().getEncoded()));
    if (resp.getStatus() != OCSPResp.SUCCESSFUL) {
      return "status " + resp.getStatus();
    }
    BasicOCSPResp basic = (BasicOCSPResp) resp.getResponseObject();
    X509CertificateHolder delegate = basic.getCerts()[0];
    if (!delegate.isSignatureValid(new JcaContentVerifierProviderBuilder().build(ca))) {
      return "error the CA did not sign the delegate";
    }
    if (!ExtendedKeyUsage.fromExtensions(delegate.getExtensions()).hasKeyPurposeId(KeyPurposeId.id_kp_OCSPSigning)) {
      return "error the delegate is not for OCSP";
    }
    if (!basic.isSignatureValid(new JcaContentVerifierProviderBuilder().build(delegate))) {
      return "error the delegate did not sign the answer";
    }
    org.bouncycastle.asn1.x509.Extension echoed = basic.getExtension(OCSPObjectIdentifiers.id_pkix_ocsp_nonce);
    if (withNonce && !Arrays.equals(nonce, DEROctetString.getInstance(echoed.getParsedValue()).getOctets())) {
      return "error another nonce";
    }
    if (!withNonce && echoed != null) {
      return "error a nonce that nobody asked for";
    }
    SingleResp single = basic.getResponses()[0];
    if (basic.getResponses().length != 1 || !single.getCertID().equals(id)) {
      return "error an answer about something else";
    }
    CertificateStatus status = single.getCertStatus();
    if (status == CertificateStatus.GOOD) {
      return "good";
    }
    if (status instanceof RevokedStatus) {
      return "revoked " + ((RevokedStatus) status).getRevocationReason();
    }
    return "unknown";
  }

  static byte[] post(String to, byte[] body) throws Exception {
    HttpURLConnection c = (HttpURLConnection) URI.create(to).toURL().openConnection();
    c.setDoOutput(true);
    c.setRequestProperty("Content-Type", "application/ocsp-request");
    try (OutputStream out = c.getOutputStream()) {
      out.write(body);
    }
    return c.getInputStream().readAllBytes();
  }

  static String bcCRL(String crl, String issuer, String leaf) throws Exception {
    X509CRLHolder list = new X509CRLHolder(Files.readAllBytes(Path.of(crl)));
    X509CertificateHolder ca = new JcaX509CertificateHolder(certificate(issuer));
    if (!list.isSignatureValid(new JcaContentVerifierProviderBuilder().build(ca))) {
      return "error the CA did not sign the CRL";
    }
    X509CRLEntryHolder entry = list.getRevokedCertificate(certificate(leaf).getSerialNumber());
    if (entry == null) {
      return "good";
    }
    org.bouncycastle.asn1.x509.Extension reason = entry.getExtension(org.bouncycastle.asn1.x509.Extension.reasonCode);
    return "revoked " + (reason == null ? "-" : CRLReason.getInstance(reason.getParsedValue()).getValue());
  }
}
