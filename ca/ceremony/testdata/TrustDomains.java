import java.io.FileInputStream;
import java.net.URI;
import java.security.cert.*;
import java.util.*;

/** TrustDomains prints the host of each "host URI", and the host that the leaf's SPIFFE ID has after validation of each "chain ROOT LEAF ISSUING". */
public class TrustDomains {
	static X509Certificate read(String file) throws Exception {
		try (FileInputStream in = new FileInputStream(file)) {
			return (X509Certificate) CertificateFactory.getInstance("X.509").generateCertificate(in);
		}
	}

	static String validate(String root, String leaf, String issuing) {
		try {
			PKIXParameters parameters = new PKIXParameters(Set.of(new TrustAnchor(read(root), null)));
			parameters.setRevocationEnabled(false);
			CertPath path = CertificateFactory.getInstance("X.509").generateCertPath(List.of(read(leaf), read(issuing)));
			CertPathValidator.getInstance("PKIX").validate(path, parameters);
			for (List<?> name : read(leaf).getSubjectAlternativeNames())
				if (name.get(0).equals(6)) return new URI((String) name.get(1)).getHost();
			return "no URI";
		} catch (Exception e) {
			return "refused: " + e.getMessage();
		}
	}

	public static void main(String[] args) throws Exception {
		for (int i = 0; i < args.length;)
			if (args[i++].equals("host")) System.out.println(new URI(args[i++]).getHost());
			else System.out.println(validate(args[i++], args[i++], args[i++]));
	}
}
