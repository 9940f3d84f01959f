package postgres_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/brevet-pki/brevet/store/postgres"
)

// pair is a certificate and its key, in PEM.
type pair struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// issue returns a new certificate. A nil issuer makes a CA.
func issue(t *testing.T, issuer *pair, name string, addresses ...net.IP) *pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), IPAddresses: addresses,
		IsCA: issuer == nil, BasicConstraintsValid: true,
	}
	by := issuer
	if by == nil {
		by = &pair{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.certificate, key.Public(), by.key)
	must(t, err)
	certificate, err := x509.ParseCertificate(der)
	must(t, err)
	return &pair{certificate, key}
}

func (p *pair) certificatePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.certificate.Raw})
}

func (p *pair) keyPEM(t *testing.T) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(p.key)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// TestCertificatesOfBothSides connects with sslmode=verify-full and a client certificate.
func TestCertificatesOfBothSides(t *testing.T) {
	const address = "127.66.86.84" // no other server has its port 5432
	c, dir := ownCluster(t), t.TempDir()
	must(t, c.Exec(`CREATE ROLE brevet_server LOGIN`, `CREATE SCHEMA brevet_server AUTHORIZATION brevet_server`))
	root := issue(t, nil, "the CA")
	server, client := issue(t, root, "the server", net.ParseIP(address)), issue(t, root, "brevet_server")
	other := issue(t, root, "postgres")
	foreign := issue(t, nil, "another CA")
	must(t, c.WriteData("server.crt", server.certificatePEM()))
	must(t, c.WriteData("server.key", server.keyPEM(t)))
	must(t, c.WriteData("root.crt", root.certificatePEM()))
	must(t, c.WriteData("pg_hba.conf", []byte("local all all trust\nhostssl all all 127.0.0.0/8 cert\n")))
	must(t, c.End())
	settings := []string{"ssl=on", "ssl_ca_file=root.crt", "listen_addresses=" + address + ",127.66.86.85"}
	must(t, c.Run(settings...))
	for name, content := range map[string][]byte{
		"root.crt": root.certificatePEM(), "foreign.crt": foreign.certificatePEM(), "client.crt": client.certificatePEM(), "client.key": client.keyPEM(t),
		"other.crt": other.certificatePEM(), "other.key": other.keyPEM(t),
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
	}
	connection := func(host, root, client string) string {
		s := fmt.Sprintf("host=%s user=brevet_server dbname=postgres sslmode=verify-full sslrootcert=%s/%s", host, dir, root)
		if client != "" {
			s += fmt.Sprintf(" sslcert=%[1]s/%[2]s.crt sslkey=%[1]s/%[2]s.key", dir, client)
		}
		return s
	}
	db := openTables(t, connection(address, "root.crt", "client"), "first")
	must(t, logSomething(db, "over TLS"))
	must(t, c.Wait(`SELECT bool_and(s.ssl AND s.client_dn = '/CN=brevet_server') FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.application_name LIKE 'brevet %'`))
	for what, wrong := range map[string]struct{ connection, want string }{
		"another host":               {connection("127.66.86.85", "root.crt", "client"), "name sslrootcert and host"},
		"another CA":                 {connection(address, "foreign.crt", "client"), "name sslrootcert and host"},
		"no client certificate":      {connection(address, "root.crt", ""), "sslcert and sslkey, passfile"},
		"another client certificate": {connection(address, "root.crt", "other"), "sslcert and sslkey, passfile"},
		"no TLS":                     {strings.Replace(connection(address, "root.crt", "client"), "verify-full", "disable", 1), "passfile and sslmode with pg_hba.conf"},
	} {
		_, err := postgres.Open(t.Context(), wrong.connection, "first")
		if err == nil || !strings.Contains(err.Error(), wrong.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
