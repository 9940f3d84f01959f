// Resumption connects to servers on localhost, and reports for each connection whether it was accepted. A line on
// standard input contains a port, the path of the root certificate and the session timeout in seconds, separated by
// tabs. Lines with the same root and timeout share an SSLContext with its sessions.

import java.io.*;
import java.security.*;
import java.security.cert.*;
import java.util.*;
import javax.net.ssl.*;

public class Resumption {
  // DOCUMENTED

  public static void main(String[] args) throws Exception {
    Map<String, SSLContext> contexts = new HashMap<>();
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
    for (String line = in.readLine(); line != null; line = in.readLine()) {
      String[] words = line.split("\t");
      SSLContext context = contexts.get(words[1] + words[2]);
      if (context == null) {
        KeyStore roots = KeyStore.getInstance("PKCS12");
        roots.load(null, null);
        roots.setCertificateEntry("root", CertificateFactory.getInstance("X.509").generateCertificate(new FileInputStream(words[1])));
        context = context(roots);
        if (!words[2].equals("documented")) context.getClientSessionContext().setSessionTimeout(Integer.parseInt(words[2]));
        contexts.put(words[1] + words[2], context);
      }
      System.out.println(connect(context, Integer.parseInt(words[0])));
      System.out.flush();
    }
  }

  static String connect(SSLContext context, int port) {
    try (SSLSocket s = (SSLSocket) context.getSocketFactory().createSocket("localhost", port)) {
      SSLParameters parameters = s.getSSLParameters();
      parameters.setEndpointIdentificationAlgorithm("HTTPS");
      s.setSSLParameters(parameters);
      s.startHandshake();
      return "accepted " + new String(s.getInputStream().readAllBytes()); // reads the session tickets too
    } catch (Exception e) {
      Throwable cause = e;
      while (cause.getCause() != null) cause = cause.getCause();
      return "refused " + cause;
    }
  }
}
