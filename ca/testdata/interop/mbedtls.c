/* mbedtls CHAIN KEY ROOT PORT: parses a chain, verifies it, and calls a TLS server on this machine with it. */
#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/error.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(const char *what, int code) {
	char text[200];
	if (code == 0) return;
	mbedtls_strerror(code, text, sizeof text);
	printf("%s: -0x%04x %s\n", what, (unsigned)-code, text);
	exit(1);
}

int main(int argc, char **argv) {
	mbedtls_net_context net;
	mbedtls_entropy_context entropy;
	mbedtls_ctr_drbg_context random;
	mbedtls_ssl_context ssl;
	mbedtls_ssl_config config;
	mbedtls_x509_crt chain, root;
	mbedtls_pk_context key;
	uint32_t flags;
	unsigned char said[5];
	if (argc != 5) return 2;
	mbedtls_net_init(&net);
	mbedtls_entropy_init(&entropy);
	mbedtls_ctr_drbg_init(&random);
	mbedtls_ssl_init(&ssl);
	mbedtls_ssl_config_init(&config);
	mbedtls_x509_crt_init(&chain);
	mbedtls_x509_crt_init(&root);
	mbedtls_pk_init(&key);
	check("seed", mbedtls_ctr_drbg_seed(&random, mbedtls_entropy_func, &entropy, NULL, 0));
	check("parse the root", mbedtls_x509_crt_parse_file(&root, argv[3]));
	/* Of a chain whose second certificate does not parse, this returns 1: how many were left out. */
	check("parse the chain", mbedtls_x509_crt_parse_file(&chain, argv[1]));
	check("read the key", mbedtls_pk_parse_keyfile(&key, argv[2], NULL));
	check("verify the chain", mbedtls_x509_crt_verify(&chain, &root, NULL, "ca.fleet.example", &flags, NULL, NULL));
	check("configure", mbedtls_ssl_config_defaults(&config, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM, MBEDTLS_SSL_PRESET_DEFAULT));
	mbedtls_ssl_conf_rng(&config, mbedtls_ctr_drbg_random, &random);
	mbedtls_ssl_conf_ca_chain(&config, &root, NULL);
	mbedtls_ssl_conf_authmode(&config, MBEDTLS_SSL_VERIFY_REQUIRED);
	check("own certificate", mbedtls_ssl_conf_own_cert(&config, &chain, &key));
	check("set up", mbedtls_ssl_setup(&ssl, &config));
	check("host name", mbedtls_ssl_set_hostname(&ssl, "ca.fleet.example"));
	check("connect", mbedtls_net_connect(&net, "127.0.0.1", argv[4], MBEDTLS_NET_PROTO_TCP));
	mbedtls_ssl_set_bio(&ssl, &net, mbedtls_net_send, mbedtls_net_recv, NULL);
	check("handshake", mbedtls_ssl_handshake(&ssl));
	if (mbedtls_ssl_read(&ssl, said, sizeof said) != sizeof said || memcmp(said, "hello", sizeof said) != 0) {
		puts("the server did not say hello");
		return 1;
	}
	puts("hello");
	return 0;
}
