/* wolfssl CHAIN KEY ROOT PORT ISSUING: verifies a chain, and calls a TLS server on this machine with it. */
#include <wolfssl/options.h>
#include <wolfssl/ssl.h>
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void check(const char *what, int holds) {
	if (holds) return;
	printf("%s\n", what);
	exit(1);
}

/* verify does what firmware does that keeps the issuing CA among its own certificates. */
static void verify(const char *chain, const char *root, const char *issuing) {
	WOLFSSL_CERT_MANAGER *manager = wolfSSL_CertManagerNew();
	int code;
	check("manager", manager != NULL);
	check("load the root", wolfSSL_CertManagerLoadCA(manager, root, NULL) == WOLFSSL_SUCCESS);
	check("load the issuing CA", wolfSSL_CertManagerLoadCA(manager, issuing, NULL) == WOLFSSL_SUCCESS);
	code = wolfSSL_CertManagerVerify(manager, chain, WOLFSSL_FILETYPE_PEM);
	if (code == WOLFSSL_SUCCESS) return;
	printf("verify the chain: %d %s\n", code, wolfSSL_ERR_reason_error_string(code));
	exit(1);
}

int main(int argc, char **argv) {
	struct sockaddr_in server = {.sin_family = AF_INET};
	char text[WOLFSSL_MAX_ERROR_SZ], said[5];
	WOLFSSL_CTX *context;
	WOLFSSL *ssl;
	int s, code;
	if (argc != 6) return 2;
	wolfSSL_Init();
	verify(argv[1], argv[3], argv[5]);
	context = wolfSSL_CTX_new(wolfTLS_client_method());
	check("context", context != NULL);
	check("read the root", wolfSSL_CTX_load_verify_locations(context, argv[3], NULL) == WOLFSSL_SUCCESS);
	check("read the chain", wolfSSL_CTX_use_certificate_chain_file(context, argv[1]) == WOLFSSL_SUCCESS);
	check("read the key", wolfSSL_CTX_use_PrivateKey_file(context, argv[2], WOLFSSL_FILETYPE_PEM) == WOLFSSL_SUCCESS);
	server.sin_port = htons(atoi(argv[4]));
	server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	s = socket(AF_INET, SOCK_STREAM, 0);
	check("connect", s >= 0 && connect(s, (struct sockaddr *)&server, sizeof server) == 0);
	ssl = wolfSSL_new(context);
	check("session", ssl != NULL && wolfSSL_set_fd(ssl, s) == WOLFSSL_SUCCESS);
	check("host name", wolfSSL_check_domain_name(ssl, "ca.fleet.example") == WOLFSSL_SUCCESS);
	code = wolfSSL_connect(ssl);
	if (code != WOLFSSL_SUCCESS) {
		code = wolfSSL_get_error(ssl, code);
		printf("handshake: %d %s\n", code, wolfSSL_ERR_error_string(code, text));
		return 1;
	}
	check("the server did not say hello", wolfSSL_read(ssl, said, sizeof said) == sizeof said && memcmp(said, "hello", sizeof said) == 0);
	puts("hello");
	return 0;
}
