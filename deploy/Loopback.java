import java.lang.invoke.MethodHandles;
import java.lang.reflect.Field;
import java.net.InetAddress;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/**
 * Runs another main class so that whatever would listen on every interface listens on 127.0.0.1 alone.
 *
 * Name server and broker have an option for their main port; the broker's replication port, both ports of the proxy and the name server of
 * 4.x have none. They bind either "any local address", as the JDK answers it, or the default of NettyServerConfig: both are changed here.
 * Needs -Djava.net.preferIPv4Stack=true and --add-opens java.base/java.net=ALL-UNNAMED.
 */
public final class Loopback {
    private static final String PACKAGE = "org.apache.rocketmq.remoting.netty.";

    public static void main(String[] arguments) throws Exception {
        Field field = InetAddress.class.getDeclaredField("impl");
        field.setAccessible(true);
        Object resolver = field.get(null);
        Field any = resolver.getClass().getDeclaredField("anyLocalAddress");
        any.setAccessible(true);
        any.set(resolver, InetAddress.getByAddress("localhost", new byte[] {127, 0, 0, 1}));

        String name = PACKAGE + "NettyServerConfig";
        try (var stream = Loopback.class.getClassLoader().getResourceAsStream(name.replace('.', '/') + ".class")) {
            // a constant of a class file: tag 1, length in two bytes, text
            String code = new String(stream.readAllBytes(), StandardCharsets.ISO_8859_1);
            String changed = code.replace("\1\0\7" + "0.0.0.0", "\1\0\11" + "127.0.0.1");
            var lookup = MethodHandles.privateLookupIn(Class.forName(PACKAGE + "NettySystemConfig"), MethodHandles.lookup());
            lookup.defineClass(changed.getBytes(StandardCharsets.ISO_8859_1));
        }

        String[] rest = Arrays.copyOfRange(arguments, 1, arguments.length);
        Class.forName(arguments[0]).getMethod("main", String[].class).invoke(null, (Object) rest);
    }
}
