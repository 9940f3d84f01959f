import java.io.FileInputStream;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLHandshakeException;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;

/** Connects to TLS servers on 127.0.0.1, and prints for each whether its certificate is accepted for a given host name. */
public final class Hosts {
    /** The arguments are a file with the root in PEM, and then a host name and a port for each server. */
    public static void main(String[] args) throws Exception {
        KeyStore trusted = KeyStore.getInstance(KeyStore.getDefaultType());
        trusted.load(null, null);
        try (FileInputStream in = new FileInputStream(args[0])) {
            trusted.setCertificateEntry("root", CertificateFactory.getInstance("X.509").generateCertificate(in));
        }
        TrustManagerFactory managers = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        managers.init(trusted);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, managers.getTrustManagers(), null);
        for (int i = 1; i < args.length; i += 2) {
            java.net.Socket plain = new java.net.Socket("127.0.0.1", Integer.parseInt(args[i + 1]));
            try (SSLSocket socket = (SSLSocket) context.getSocketFactory().createSocket(plain, args[i], plain.getPort(), true)) {
                SSLParameters parameters = socket.getSSLParameters();
                parameters.setEndpointIdentificationAlgorithm("HTTPS");
                socket.setSSLParameters(parameters);
                socket.startHandshake();
                System.out.println("accepted");
            } catch (SSLHandshakeException e) {
                System.out.println("refused " + e.getMessage());
            }
        }
    }
}
