package jws_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/acme/jws"
)

const url = "https://ca.fleet.example:8443/acme/new-order"

func generate(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "ES256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ES384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ES512":
		key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "EdDSA":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case "RS256", "PS256":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign returns a request that go-jose has signed, with the members of the header.
func sign(t testing.TB, algorithm string, key any, payload string, header map[string]any) []byte {
	t.Helper()
	options := &jose.SignerOptions{}
	for name, value := range header {
		options.WithHeader(jose.HeaderKey(name), value)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(algorithm), Key: key}, options)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return []byte(signed.FullSerialize())
}

func jwk(key crypto.Signer) jose.JSONWebKey { return jose.JSONWebKey{Key: key.Public()} }

func TestSignedRequestsOfEveryAlgorithm(t *testing.T) {
	for _, algorithm := range jws.Algorithms() {
		key := generate(t, algorithm)
		body := sign(t, algorithm, key, `{"a":1}`, map[string]any{"nonce": "n", "url": url, "jwk": jwk(key)})
		m, err := jws.Parse(body)
		if err != nil {
			t.Fatalf("%s: %v", algorithm, err)
		}
		payload, err := m.Verify(m.Key)
		if err != nil || string(payload) != `{"a":1}` || m.URL != url || m.Nonce != "n" || m.KeyID != "" {
			t.Errorf("%s: got %q, %+v, %v", algorithm, payload, m, err)
		}
		again, err := jws.ParseSPKI(m.Key.SPKI)
		if err != nil || !again.Equal(m.Key) {
			t.Errorf("%s: the encoded key is another key: %v", algorithm, err)
		}
		body = sign(t, algorithm, key, "", map[string]any{"nonce": "n", "url": url, "kid": "https://ca.fleet.example/acme/account/1"})
		if m, err = jws.Parse(body); err != nil || m.Key != nil || m.KeyID == "" {
			t.Fatalf("%s with kid: %+v, %v", algorithm, m, err)
		}
		if payload, err := m.Verify(again); err != nil || len(payload) != 0 {
			t.Errorf("%s with kid: got %q, %v", algorithm, payload, err)
		}
		other := generate(t, algorithm)
		spki, err := pki.MarshalKey(other.Public())
		if err != nil {
			t.Fatal(err)
		}
		stranger, err := jws.ParseSPKI(spki)
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.Verify(stranger)
		wantRule(t, algorithm+" by another key", err, pki.RuleACMEJWS)
	}
}

func wantRule(t testing.TB, name string, err error, want pki.Rule) {
	t.Helper()
	refusal, ok := pki.AsRefusal(err)
	if !ok || refusal.Rule != want || refusal.Hint == "" || refusal.Detail == "" {
		t.Errorf("%s: got %v, want a refusal by %s with a hint", name, err, want)
	}
}

// raw returns a JWS with any header, signed with ES256.
func raw(t testing.TB, key *ecdsa.PrivateKey, header, payload string) map[string]any {
	t.Helper()
	protected, body := encode(header), encode(payload)
	digest := sha256.Sum256([]byte(protected + "." + body))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	return map[string]any{"protected": protected, "payload": body, "signature": base64.RawURLEncoding.EncodeToString(signature)}
}

func encode(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

func marshal(t testing.TB, value any) string {
	t.Helper()
	b, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// form is a malformed request, and the rule that refuses it.
type form struct {
	body string
	rule pki.Rule
}

func TestRefusedForms(t *testing.T) {
	key, ok := generate(t, "ES256").(*ecdsa.PrivateKey)
	if !ok {
		t.Fatal("the key is not on P-256")
	}
	good := goodHeader(t, key)
	m, err := jws.Parse([]byte(marshal(t, raw(t, key, strings.Replace(good, `"alg"`, ` "x":null,"alg"`, 1), "{}"))))
	if err != nil {
		t.Fatalf("the request that the others are made from is refused: %v", err)
	}
	if _, err := m.Verify(m.Key); err != nil {
		t.Fatalf("the request that the others are made from is refused: %v", err)
	}
	for _, forms := range []map[string]form{refusedEnvelopes(t, key), refusedHeaders(t, key), refusedKeys(t, key)} {
		for name, f := range forms {
			_, err := jws.Parse([]byte(f.body))
			wantRule(t, name, err, f.rule)
		}
	}
}

func goodHeader(t *testing.T, key *ecdsa.PrivateKey) string {
	t.Helper()
	return fmt.Sprintf(`{"alg":"ES256","nonce":"n","url":%q,"jwk":%s}`, url, marshal(t, jwk(key)))
}

// edited returns a request in whose header a text is replaced.
func edited(t *testing.T, key *ecdsa.PrivateKey, old, replacement string) string {
	t.Helper()
	good := goodHeader(t, key)
	text := strings.Replace(good, old, replacement, 1)
	if text == good {
		t.Fatalf("%s does not contain %s", good, old)
	}
	return marshal(t, raw(t, key, text, "{}"))
}

// refusedEnvelopes returns requests whose JSON outside of the header is malformed.
func refusedEnvelopes(t *testing.T, key *ecdsa.PrivateKey) map[string]form {
	t.Helper()
	with := func(change func(parts map[string]any)) string {
		parts := raw(t, key, goodHeader(t, key), "{}")
		change(parts)
		return marshal(t, parts)
	}
	parts := raw(t, key, goodHeader(t, key), "{}")
	return map[string]form{
		"empty":                  {"", pki.RuleACMEJWS},
		"not JSON":               {"{", pki.RuleACMEJWS},
		"an array":               {"[]", pki.RuleACMEJWS},
		"null":                   {"null", pki.RuleACMEJWS},
		"not UTF-8":              {"{\"payload\":\"\xff\"}", pki.RuleACMEJWS},
		"deep":                   {strings.Repeat("[", 20_000), pki.RuleACMEJWS},
		"data after it":          {marshal(t, parts) + "{}", pki.RuleACMEJWS},
		"compact serialization":  {fmt.Sprintf("%s.%s.%s", parts["protected"], parts["payload"], parts["signature"]), pki.RuleACMEJWS},
		"a member twice":         {`{"payload":"",` + marshal(t, parts)[1:], pki.RuleACMEJWS},
		"names in upper case":    {strings.ToUpper(marshal(t, parts)), pki.RuleACMEJWS},
		"no payload":             {with(func(p map[string]any) { delete(p, "payload") }), pki.RuleACMEJWS},
		"no signature":           {with(func(p map[string]any) { delete(p, "signature") }), pki.RuleACMEJWS},
		"a payload in an object": {with(func(p map[string]any) { p["payload"] = map[string]any{} }), pki.RuleACMEJWS},
		"padding":                {with(func(p map[string]any) { p["payload"] = "e30=" }), pki.RuleACMEJWS},
		"a line break in base64": {with(func(p map[string]any) { p["payload"] = "e3\n0" }), pki.RuleACMEJWS},
		"bits after the payload": {with(func(p map[string]any) { p["payload"] = "e31" }), pki.RuleACMEJWS},
		"base64 of RFC 4648 §4":  {with(func(p map[string]any) { p["signature"] = "++//" }), pki.RuleACMEJWS},
		"an unprotected header":  {with(func(p map[string]any) { p["header"] = map[string]any{"nonce": "n"} }), pki.RuleACMEJWS},
		"an empty header":        {with(func(p map[string]any) { p["header"] = nil }), pki.RuleACMEJWS},
		"two signatures": {marshal(t, map[string]any{"payload": parts["payload"], "signatures": []any{parts, parts}}),
			pki.RuleACMEJWS},
		"signatures beside one": {with(func(p map[string]any) { p["signatures"] = []any{} }), pki.RuleACMEJWS},
		"one MiB":               {`{"payload":"` + strings.Repeat("A", 1<<20) + `"}`, pki.RuleSize},
	}
}

// refusedHeaders returns requests whose protected header is malformed.
func refusedHeaders(t *testing.T, key *ecdsa.PrivateKey) map[string]form {
	t.Helper()
	edit := func(old, replacement string) string { return edited(t, key, old, replacement) }
	public := marshal(t, jwk(key))
	return map[string]form{
		"none":                {edit(`"ES256"`, `"none"`), pki.RuleACMEAlgorithm},
		"None":                {edit(`"ES256"`, `"None"`), pki.RuleACMEAlgorithm},
		"HMAC":                {edit(`"ES256"`, `"HS256"`), pki.RuleACMEAlgorithm},
		"PSS":                 {edit(`"ES256"`, `"PS256"`), pki.RuleACMEAlgorithm},
		"ES512":               {edit(`"ES256"`, `"ES512"`), pki.RuleACMEAlgorithm},
		"no algorithm":        {edit(`"alg":"ES256",`, ``), pki.RuleACMEJWS},
		"a numeric algorithm": {edit(`"ES256"`, `256`), pki.RuleACMEJWS},
		"algorithm twice":     {edit(`"alg"`, `"alg":"ES256","alg"`), pki.RuleACMEJWS},
		"crit":                {edit(`"alg"`, `"crit":["url"],"alg"`), pki.RuleACMEJWS},
		"an unknown crit":     {edit(`"alg"`, `"crit":["exp"],"exp":1,"alg"`), pki.RuleACMEJWS},
		"b64":                 {edit(`"alg"`, `"b64":false,"crit":["b64"],"alg"`), pki.RuleACMEJWS},
		"b64 alone":           {edit(`"alg"`, `"b64":true,"alg"`), pki.RuleACMEJWS},
		"no nonce":            {edit(`"nonce":"n",`, ``), pki.RuleACMENonce},
		"an empty nonce":      {edit(`"nonce":"n"`, `"nonce":""`), pki.RuleACMENonce},
		"a long nonce":        {edit(`"nonce":"n"`, `"nonce":"`+strings.Repeat("n", 1000)+`"`), pki.RuleACMEJWS},
		"no url":              {edit(`"url"`, `"uri"`), pki.RuleACMEJWS},
		"a long url":          {edit(`"url":"`, `"url":"`+strings.Repeat("n", 3000)), pki.RuleACMEJWS},
		"jwk and kid":         {edit(`"alg"`, `"kid":"https://x/1","alg"`), pki.RuleACMEJWS},
		"neither jwk nor kid": {edit(`"jwk"`, `"key"`), pki.RuleACMEJWS},
		"an empty kid":        {edit(`"jwk":`+public, `"kid":""`), pki.RuleACMEJWS},
		"a long kid":          {edit(`"jwk":`+public, `"kid":"`+strings.Repeat("k", 3000)+`"`), pki.RuleACMEJWS},
		"a numeric kid":       {edit(`"jwk":`+public, `"kid":1`), pki.RuleACMEJWS},
	}
}

// refusedKeys returns requests with a key that is not accepted.
func refusedKeys(t *testing.T, key *ecdsa.PrivateKey) map[string]form {
	t.Helper()
	public := marshal(t, jwk(key))
	edit := func(old, replacement string) string { return edited(t, key, old, replacement) }
	return map[string]form{
		"null as jwk":       {edit(public, `null`), pki.RuleACMEPublicKey},
		"a text as jwk":     {edit(public, `"key"`), pki.RuleACMEPublicKey},
		"an empty jwk":      {edit(public, `{}`), pki.RuleACMEPublicKey},
		"a private key":     {edit(public, marshal(t, jose.JSONWebKey{Key: key})), pki.RuleACMEPublicKey},
		"a secret":          {edit(public, `{"kty":"oct","k":"AAAA"}`), pki.RuleACMEPublicKey},
		"a point elsewhere": {edit(`"y":"`, `"y":"AAAA`), pki.RuleACMEPublicKey},
		"P-521":             {edit(public, marshal(t, jwk(generate(t, "ES512")))), pki.RuleACMEPublicKey},
		"RSA of 1024 bits":  {edit(public, rsaJWK(t, 1024, 65537)), pki.RuleACMEPublicKey},
		"RSA of 2047 bits":  {edit(public, rsaJWK(t, 2047, 65537)), pki.RuleACMEPublicKey},
		"RSA of 8192 bits":  {edit(public, rsaJWK(t, 8192, 65537)), pki.RuleACMEPublicKey},
		"RSA exponent of 3": {edit(public, rsaJWK(t, 2048, 3)), pki.RuleACMEPublicKey},
		"Ed25519 of small order": {edit(public, `{"kty":"OKP","crv":"Ed25519","x":"`+encode(strings.Repeat("\x00", 32))+`"}`),
			pki.RuleACMEPublicKey},
	}
}

// rsaJWK returns a JWK whose modulus has no small factor.
func rsaJWK(t testing.TB, bits, exponent int) string {
	t.Helper()
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
	n.Add(n, new(big.Int).SetUint64(0x123456789abcdef1))
	for small := int64(3); small < 752; small += 2 {
		if new(big.Int).Mod(n, big.NewInt(small)).Sign() == 0 {
			n.Add(n, big.NewInt(2))
			small = 1
		}
	}
	return marshal(t, jose.JSONWebKey{Key: &rsa.PublicKey{N: n, E: exponent}})
}

func TestUnmarshalOnlyObjects(t *testing.T) {
	t.Parallel()
	var payload struct{ Status *string }
	for _, text := range []string{"null", " null ", "true", "1", `"{}"`, "[]", "", "{}{}", "{"} {
		if err := jws.Unmarshal([]byte(text), &payload); err == nil {
			t.Errorf("%q is accepted as an object", text)
		}
	}
	for _, text := range []string{"{}", " \t\r\n{} "} {
		if err := jws.Unmarshal([]byte(text), &payload); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestRefusedSignatures(t *testing.T) {
	key := generate(t, "ES256")
	body := sign(t, "ES256", key, "{}", map[string]any{"nonce": "n", "url": url, "jwk": jwk(key)})
	var parts map[string]string
	if err := json.Unmarshal(body, &parts); err != nil {
		t.Fatal(err)
	}
	for name, signature := range map[string]string{
		"none": "", "short": parts["signature"][:40], "long": parts["signature"] + "AAAA",
		"zeros": base64.RawURLEncoding.EncodeToString(make([]byte, 64)),
	} {
		altered := map[string]string{"protected": parts["protected"], "payload": parts["payload"], "signature": signature}
		m, err := jws.Parse([]byte(marshal(t, altered)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, err = m.Verify(m.Key)
		wantRule(t, name, err, pki.RuleACMEJWS)
	}
	parts["payload"] = encode(`{"x":1}`)
	m, err := jws.Parse([]byte(marshal(t, parts)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Verify(m.Key)
	wantRule(t, "another payload", err, pki.RuleACMEJWS)

	// The key of the account decides about the algorithm, not the header.
	other, err := jws.ParseSPKI(spkiOf(t, generate(t, "ES384")))
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Verify(other)
	wantRule(t, "a key of another type", err, pki.RuleACMEAlgorithm)
}

func spkiOf(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	spki, err := pki.MarshalKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return spki
}

func TestBinding(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, 32)
	key, other := generate(t, "ES256"), generate(t, "ES256")
	account, err := jws.ParseSPKI(spkiOf(t, key))
	if err != nil {
		t.Fatal(err)
	}
	public := marshal(t, jwk(key))
	header := func() map[string]any { return map[string]any{"url": url, "kid": "k1"} }
	for _, algorithm := range []string{"HS256", "HS384", "HS512"} {
		b, err := jws.ParseBinding(sign(t, algorithm, bytes.Repeat(secret, 2), public, header()), url, account)
		if err != nil {
			t.Fatalf("%s: %v", algorithm, err)
		}
		if b.KeyID != "k1" || !b.Verify(bytes.Repeat(secret, 2)) || b.Verify(secret) || b.Verify(nil) {
			t.Errorf("%s: the binding is not verified with its secret alone", algorithm)
		}
	}
	hmacWith := func(secret []byte, header, payload string) []byte {
		protected, body := encode(header), encode(payload)
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(protected + "." + body))
		return []byte(marshal(t, map[string]string{
			"protected": protected, "payload": body, "signature": base64.RawURLEncoding.EncodeToString(mac.Sum(nil)),
		}))
	}
	hmacOf := func(header, payload string) []byte { return hmacWith(secret, header, payload) }
	binding := fmt.Sprintf(`{"alg":"HS256","url":%q,"kid":"k1"}`, url)
	for size, want := range map[int]bool{31: false, 32: true} { // RFC 7518 §3.2
		b, err := jws.ParseBinding(hmacWith(secret[:size], binding, public), url, account)
		if err != nil || b.Verify(secret[:size]) != want {
			t.Errorf("a secret of %d bytes verifies: %t, %v", size, !want, err)
		}
	}
	for name, c := range map[string]struct {
		raw  []byte
		rule pki.Rule
	}{
		"another URL":              {sign(t, "HS256", secret, public, map[string]any{"url": url + "/", "kid": "k1"}), pki.RuleACMEJWS},
		"no URL":                   {sign(t, "HS256", secret, public, map[string]any{"kid": "k1"}), pki.RuleACMEJWS},
		"no kid":                   {sign(t, "HS256", secret, public, map[string]any{"url": url}), pki.RuleACMEJWS},
		"a nonce":                  {sign(t, "HS256", secret, public, map[string]any{"url": url, "kid": "k1", "nonce": "n"}), pki.RuleACMEJWS},
		"the key of another":       {sign(t, "HS256", secret, marshal(t, jwk(other)), header()), pki.RuleACMEJWS},
		"no key":                   {sign(t, "HS256", secret, "{}", header()), pki.RuleACMEJWS},
		"an empty payload":         {sign(t, "HS256", secret, "", header()), pki.RuleACMEJWS},
		"a public key's signature": {sign(t, "ES256", key, public, header()), pki.RuleACMEAlgorithm},
		"none":                     {hmacOf(fmt.Sprintf(`{"alg":"none","url":%q,"kid":"k1"}`, url), public), pki.RuleACMEAlgorithm},
		"not an object":            {[]byte(`"binding"`), pki.RuleACMEJWS},
	} {
		_, err := jws.ParseBinding(c.raw, url, account)
		wantRule(t, name, err, c.rule)
	}
	// HMAC is for bindings only, also with the public key as secret.
	_, err = jws.Parse(sign(t, "HS256", account.SPKI, "{}", map[string]any{"nonce": "n", "url": url, "kid": "k1"}))
	wantRule(t, "HMAC in a request", err, pki.RuleACMEAlgorithm)
}

func TestChange(t *testing.T) {
	key := generate(t, "EdDSA")
	key2, payload, err := jws.ParseChange(sign(t, "EdDSA", key, `{"a":1}`, map[string]any{"url": url, "jwk": jwk(key)}), url)
	if err != nil || string(payload) != `{"a":1}` || !bytes.Equal(key2.SPKI, spkiOf(t, key)) {
		t.Fatalf("got %q, %v", payload, err)
	}
	other := generate(t, "EdDSA")
	for name, c := range map[string]struct {
		body []byte
		rule pki.Rule
	}{
		"another URL": {sign(t, "EdDSA", key, `{}`, map[string]any{"url": url + "?", "jwk": jwk(key)}), pki.RuleACMEJWS},
		"a nonce":     {sign(t, "EdDSA", key, `{}`, map[string]any{"url": url, "jwk": jwk(key), "nonce": "n"}), pki.RuleACMEJWS},
		"a kid":       {sign(t, "EdDSA", key, `{}`, map[string]any{"url": url, "kid": "k"}), pki.RuleACMEJWS},
		"other key":   {sign(t, "EdDSA", other, `{}`, map[string]any{"url": url, "jwk": jwk(key)}), pki.RuleACMEJWS},
		"empty":       {nil, pki.RuleACMEJWS},
	} {
		_, _, err := jws.ParseChange(c.body, url)
		wantRule(t, name, err, c.rule)
	}
}
