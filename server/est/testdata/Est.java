import java.io.FileInputStream;
import java.net.Socket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.KeyStore;
import java.security.Security;
import java.security.cert.CertificateFactory;
import java.security.cert.X509Certificate;
import java.security.spec.ECGenParameterSpec;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.TrustManagerFactory;
import javax.net.ssl.X509TrustManager;
import javax.security.auth.x500.X500Principal;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.cert.jcajce.JcaX509CertificateConverter;
import org.bouncycastle.est.ESTAuth;
import org.bouncycastle.est.ESTService;
import org.bouncycastle.est.EnrollmentResponse;
import org.bouncycastle.est.HttpAuth;
import org.bouncycastle.est.jcajce.ChannelBindingProvider;
import org.bouncycastle.est.jcajce.JsseESTServiceBuilder;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.jsse.BCSSLSocket;
import org.bouncycastle.jsse.provider.BouncyCastleJsseProvider;
import org.bouncycastle.operator.jcajce.JcaContentSignerBuilder;
import org.bouncycastle.pkcs.jcajce.JcaPKCS10CertificationRequestBuilder;

/**
 * A client of EST with Bouncy Castle. Its arguments are HOST:PORT, the label, a file with the root, an operation, and for
 * the operation its credential:
 *
 * cacerts and csrattrs have none; token and linked have a file with the text of a token; certificate and renew have a
 * PKCS #12 file with the password "password". The last four have the file for a PKCS #12 file with the new certificate as
 * the last argument. linked sends a CSR with the tls-unique value of its connection, which Java's own TLS does not tell.
 */
public class Est {
    static final char[] PASSWORD = "password".toCharArray();

    public static void main(String[] args) throws Exception {
        KeyStore trusted = KeyStore.getInstance("PKCS12");
        trusted.load(null, null);
        try (FileInputStream in = new FileInputStream(args[2])) {
            trusted.setCertificateEntry("root", CertificateFactory.getInstance("X.509").generateCertificate(in));
        }
        String operation = args[3];
        TrustManagerFactory trust;
        if (operation.equals("linked")) {
            Security.addProvider(new BouncyCastleProvider());
            Security.addProvider(new BouncyCastleJsseProvider());
            trust = TrustManagerFactory.getInstance("PKIX", "BCJSSE"); // that of Java does not work with BCJSSE
        } else {
            trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        }
        trust.init(trusted);
        JsseESTServiceBuilder builder = new JsseESTServiceBuilder(args[0], (X509TrustManager) trust.getTrustManagers()[0]);
        builder.withLabel(args[1]);
        ESTAuth auth = null;
        if (operation.equals("linked")) {
            builder.withProvider("BCJSSE").withTLSVersion("TLSv1.2").withChannelBindingProvider(new Binding());
        }
        if (operation.equals("token") || operation.equals("linked")) {
            auth = new HttpAuth("est", Files.readString(Path.of(args[4])).trim().toCharArray());
        } else if (operation.equals("certificate") || operation.equals("renew")) {
            KeyStore store = KeyStore.getInstance("PKCS12");
            try (FileInputStream in = new FileInputStream(args[4])) {
                store.load(in, PASSWORD);
            }
            KeyManagerFactory keys = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
            keys.init(store, PASSWORD);
            builder.withKeyManagers(keys.getKeyManagers());
        }
        ESTService service = builder.build();
        switch (operation) {
            case "cacerts":
                for (X509CertificateHolder c : ESTService.storeToArray(service.getCACerts().getCertificateStore())) {
                    System.out.println("CA " + c.getSubject());
                }
                return;
            case "csrattrs":
                System.out.println("has attributes: " + service.getCSRAttributes().hasAttributesResponse());
                return;
            default:
                enroll(service, operation, auth, args[5]);
        }
    }

    /** Binding reads the tls-unique value of a connection of BCJSSE. */
    static class Binding implements ChannelBindingProvider {
        public boolean canAccessChannelBinding(Socket socket) {
            return socket instanceof BCSSLSocket;
        }

        public byte[] getChannelBinding(Socket socket, String name) {
            return ((BCSSLSocket) socket).getConnection().getChannelBinding(name);
        }
    }

    static void enroll(ESTService service, String operation, ESTAuth auth, String file) throws Exception {
        KeyPairGenerator generator = KeyPairGenerator.getInstance("EC");
        generator.initialize(new ECGenParameterSpec("secp256r1"));
        KeyPair pair = generator.generateKeyPair();
        var csr = new JcaPKCS10CertificationRequestBuilder(new X500Principal(""), pair.getPublic());
        var signer = new JcaContentSignerBuilder("SHA256withECDSA").build(pair.getPrivate());
        EnrollmentResponse response = operation.equals("linked")
            ? service.simpleEnrollPoP(false, csr, signer, auth)
            : service.simpleEnroll(operation.equals("renew"), csr.build(signer), auth);
        if (!response.isCompleted()) {
            System.out.println("retry at " + response.getNotBefore());
            return;
        }
        X509Certificate[] chain = {new JcaX509CertificateConverter().getCertificate(ESTService.storeToArray(response.getStore())[0])};
        KeyStore store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        store.setKeyEntry("device", pair.getPrivate(), PASSWORD, chain);
        try (var out = Files.newOutputStream(Path.of(file))) {
            store.store(out, PASSWORD);
        }
        System.out.println("certificate " + chain[0].getSubjectAlternativeNames());
    }
}
